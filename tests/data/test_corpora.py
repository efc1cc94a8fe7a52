"""Corpora: embedded, local and mixed; the held-out split; bad input."""

import gzip
import json
import lzma

import datasets
import pytest

from hf_llm.data import load_corpus
from hf_llm.data.documents import SplitDocuments
from hf_llm.data.sources import place
from hf_llm.data.tasks import TASKS, Task, load_task


@pytest.fixture
def folder(tmp_path, documents):
    for i, text in enumerate(documents):
        (tmp_path / f"{i:03}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_python_stdlib_is_large_clean_and_split_without_overlap():
    train, validation = (load_corpus("python-stdlib", split)["text"] for split in ("train", "validation"))
    assert len(train) + len(validation) > 700
    assert 8e6 < sum(map(len, train)) < 2e7
    assert not set(train) & set(validation)
    assert 0.02 < len(validation) / len(train) < 0.1
    text = "\n".join(train)
    assert "class ArgumentParser" in text  # source
    assert 'The "assert" statement' in text  # prose of pydoc_data.topics
    assert "site-packages/torch" not in text and "class ArgumentParserTests" not in text


def test_python_stdlib_is_deterministic():
    first, second = (load_corpus("python-stdlib", "validation")["text"][:] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_file_is_a_document(folder, documents, streaming):
    for spec in (str(folder), f"{folder}/*.txt"):
        corpus = load_corpus(spec, held_out_fraction=0, streaming=streaming)
        assert [row["text"] for row in corpus] == documents
        assert isinstance(corpus, datasets.IterableDataset) == streaming


@pytest.mark.parametrize("streaming", [False, True])
def test_jsonl_and_parquet_with_a_text_column(tmp_path, documents, streaming):
    table = datasets.Dataset.from_dict({"body": documents, "number": list(range(len(documents)))})
    table.to_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", table)
    for name in ("a.parquet", "a.jsonl"):
        spec = {"name": str(tmp_path / name), "text_column": "body"}
        corpus = load_corpus(spec, held_out_fraction=0, streaming=streaming)
        assert list(corpus) == [{"text": text} for text in documents]


def test_split_depends_on_content_only(tmp_path, documents):
    """Whatever the order and the company, a document stays on its side; copies stay together."""
    everything = documents * 2
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": t} for t in everything])
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": t} for t in reversed(documents[:100])])
    held_out = set(load_corpus(one, "validation", held_out_fraction=0.3)["text"])
    train = load_corpus(one, "train", held_out_fraction=0.3)["text"][:]
    assert held_out and not held_out & set(train)
    assert len(train) + 2 * len(held_out) == len(everything)
    assert set(load_corpus(other, "validation", held_out_fraction=0.3)["text"]) == held_out & set(documents[:100])
    assert 0.2 < len(held_out) / len(set(documents)) < 0.4


def test_a_larger_fraction_keeps_what_was_held_out(documents):
    small, large = ({t for t in documents if place(t) < f} for f in (0.1, 0.2))
    assert small < large


def test_blank_documents_are_left_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": " \n"}, {"text": None}, {"text": "y"}])
    assert load_corpus(path, held_out_fraction=0)["text"][:] == ["x", "y"]


@pytest.mark.parametrize("streaming", [False, True])
def test_mixture_weights(tmp_path, streaming):
    for source, count in {"a": 300, "b": 1000}.items():
        write_jsonl(tmp_path / f"{source}.jsonl", [{"text": f"{source} {i}"} for i in range(count)])
    spec = [{"name": str(tmp_path / "a.jsonl"), "weight": 3}, {"name": str(tmp_path / "b.jsonl"), "weight": 1}]
    texts = [row["text"] for row in load_corpus(spec, held_out_fraction=0, streaming=streaming)]
    share = sum(text.startswith("a") for text in texts) / len(texts)
    assert abs(share - 0.75) < 0.03
    assert len(set(texts)) == 1300  # every document of every source
    validation = load_corpus(spec, "validation", held_out_fraction=0.5, streaming=streaming)
    held_out = [row["text"] for row in validation]
    assert len(held_out) == len(set(held_out))  # held-out documents are not repeated
    assert not set(held_out) & {row["text"] for row in load_corpus(spec, held_out_fraction=0.5, streaming=streaming)}


def test_pairs(tmp_path):
    rows = [{"source": "a", "target": "b", "other": 1}, {"source": "", "target": "c", "other": 2}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    corpus = load_corpus(path, held_out_fraction=0, columns=("source", "target"))
    assert corpus[:] == {"source": ["a"], "target": ["b"]}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("pyhton-stdlib", {}, "did you mean 'python-stdlib'.*legal are python-stdlib, shakespeare, .*a local file"),
        ("nobody/nothing", {}, "nobody/nothing.*not found"),
        ("two words", {}, "not a known name"),
        ("./missing.txt", {}, "no such file"),
        ("/nowhere/*.jsonl", {}, "no such file"),
        ([], {}, "at least one source"),
        (7, {}, "must be a name"),
        ({"weight": 1}, {}, "`name` is missing"),
        ({"name": "python-stdlib", "wieght": 1}, {}, "unknown keys.*wieght.*legal keys are.*weight"),
        ({"name": "python-stdlib", "weight": 0}, {}, "weight=0.*above 0"),
        ({"name": "python-stdlib", "part": "1/2"}, {}, "part='1/2' is for labelled sets"),
        ("python-stdlib", {"split": "test"}, "split='test'.*train, validation"),
        ("python-stdlib", {"held_out_fraction": 1.5}, "held_out_fraction=1.5"),
    ],
)
def test_bad_specs(spec, options, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(spec, **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_training_texts_of_a_labelled_set(datasets_cache, monkeypatch, streaming):
    """What its tasks hold out stays unseen; conversations become text; a part of it can be taken."""
    turns = [{"role": datasets.Value("string"), "content": datasets.Value("string")}]
    features = datasets.Features({"text": datasets.Value("string"), "messages": turns})
    rows = [
        {"text": f"t{i}", "messages": [{"role": "user", "content": w} for w in ("hi", f"m{i}")]} for i in range(99)
    ]
    entry = Task(lambda: rows, features, group_by=("text",), licence="MIT", source="a test", about="talks")
    monkeypatch.setitem(TASKS, "talks", entry)

    def both(**spec):
        loaded = [load_corpus({"name": "talks", **spec}, s, streaming=streaming) for s in ("train", "validation")]
        return {row["text"] for corpus in loaded for row in corpus}

    assert both() == set(load_task("talks", "train")["text"])
    assert both(text_column="messages") == {f"hi\nm{text[1:]}" for text in both()}
    first, second = both(part="1/2"), both(part="2/2")
    assert not first & second and first | second == both()


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_files(tmp_path, streaming):
    write_jsonl(tmp_path / "good.jsonl", [{"body": "x", "title": "y"}])
    (tmp_path / "broken.jsonl").write_text('{"text": "x"\nnot json')
    (tmp_path / "broken.parquet").write_bytes(b"\x00\x01\x02")
    (tmp_path / "blank.txt").write_text("  \n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "good.jsonl": r"text_column=\['text'\] not found; its columns are \['body', 'title'\]",
        "broken.jsonl": "cannot read .*broken.jsonl as json",
        "broken.parquet": "cannot read .*broken.parquet as parquet",
        "blank.txt": "no document in split='train'",
        "image.png": "image.png is of no known kind; legal suffixes are .txt",
        "*.*": "image.png is of no known kind",
        "empty": "no files with suffix",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_corpus(str(tmp_path / name), streaming=streaming)


def test_empty_split_names_the_fraction(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    with pytest.raises(ValueError, match="held_out_fraction=1e-06"):
        load_corpus(path, "validation", held_out_fraction=1e-6)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_several_kinds_some_of_them_compressed(tmp_path, streaming):
    """Each kind is read as such, one after the other."""
    (tmp_path / "a.txt").write_text("plain\ntext")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "json lines", "id": 3}])
    (tmp_path / "c.csv").write_text("text,more\ncommas,1\n")
    (tmp_path / "d.tsv").write_text("text\tmore\ntabs, and commas\t1\n")
    with gzip.open(tmp_path / "e.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "zipped", "other": [1]}) + "\n")
    with lzma.open(tmp_path / "f.txt.xz", "wt") as file:
        file.write("packed")
    datasets.Dataset.from_dict({"text": ["columns"]}).to_parquet(tmp_path / "g.parquet")
    found = load_corpus(str(tmp_path), held_out_fraction=0, streaming=streaming)
    texts = {"plain\ntext", "json lines", "commas", "tabs, and commas", "zipped", "packed", "columns"}
    assert {row["text"] for row in found} == texts


POEM = "\n\n".join(f"  line {i} of a poem\nand another, {'long ' * (i % 7)}one" for i in range(90)) + "\n"


@pytest.mark.parametrize("by", ["blank_lines", "paragraphs", "words"])
@pytest.mark.parametrize("text", [POEM, "\n \n" + POEM, "one line " * 300, "x"])
def test_documents_of_a_text_are_the_text(by, text):
    parts = list(SplitDocuments(by, 20)(text))
    assert "".join(parts) == text
    assert all(part.strip() for part in parts)
    if by == "words":
        assert max(len(part.split()) for part in parts) <= 20
    if by == "blank_lines" and text is POEM:
        assert len(parts) == 90 and all(part.startswith("  line") for part in parts)


@pytest.mark.parametrize("text", [POEM, POEM.replace("\n", " ")])
def test_one_text_file_has_a_held_out_part(text, tmp_path, caplog):
    (tmp_path / "input.txt").write_text(text)
    both = [[row["text"] for row in load_corpus(str(tmp_path / "input.txt"), s)] for s in ("train", "validation")]
    assert len(both[0]) > 20 and both[1] and not set(both[0]) & set(both[1])
    assert sorted("".join(both[0] + both[1])) == sorted(text)
    assert "is one text: cut into" in caplog.text
    spec = {"name": str(tmp_path / "input.txt"), "split_documents": {"by": "words", "max_words": 5}}
    assert max(len(row["text"].split()) for row in load_corpus(spec, "all")) == 5


def test_a_small_corpus_holds_one_document_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"document {i}"} for i in range(5)])
    held_out = load_corpus(path, "validation", held_out_fraction=0.001)["text"][:]
    assert len(held_out) == 1 and held_out[0] not in load_corpus(path, held_out_fraction=0.001)["text"][:]
    assert len(load_corpus(path, "all", held_out_fraction=0.001)) == 5


def test_sources_without_weights_are_read_once(tmp_path):
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(count)])
        for name, count in (("a", 3), ("b", 400))
    ]
    report = []
    texts = load_corpus(paths, held_out_fraction=0, report=report)["text"][:]
    assert len(texts) == len(set(texts)) == 403
    assert [(r["documents"], r["epochs"]) for r in report] == [(3, 1.0), (400, 1.0)]


def test_weights_are_shares_of_text(tmp_path, caplog):
    """Documents of one source are ten times as long; half of the text comes from each, and repeats are told."""
    specs = [
        {
            "name": write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name * size + f"{i:4}"} for i in range(300)]),
            "weight": 1,
        }
        for name, size in (("a", 96), ("b", 996))
    ]
    report = []
    texts = load_corpus(specs, held_out_fraction=0, report=report)["text"][:]
    share = sum(len(text) for text in texts if text.startswith("a")) / sum(map(len, texts))
    assert share == pytest.approx(0.5, abs=0.06)
    assert [r["epochs"] for r in report] == [10.0, 1.0] and "read 10.00 times" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"split_documents": {"by": "lines"}}, "split_documents.by = 'lines' is unknown; legal: blank_lines"),
        ({"split_documents": {"max_words": 0}}, "split_documents.max_words = 0 must be a whole number, at least 1"),
        (
            {"split_documents": {"size": 3}},
            r"split_documents: \['size'\]; expected a mapping with the keys by, max_words",
        ),
    ],
)
def test_bad_ways_to_split(spec, message):
    with pytest.raises(ValueError, match=message):
        load_corpus({"name": "python-stdlib", **spec})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_and_line_ends_of_other_systems(tmp_path, encoding, streaming):
    contents = {
        "a.txt": "naïve\r\ncafé",
        "a.csv": "text,label\r\nnaïve,1\r\ncafé,2\r\n",
        "a.tsv.gz": "text\tlabel\nnaïve\t1\ncafé\t2\n",
        "a.jsonl": '{"text": "naïve"}\r\n{"text": "café"}\r\n',
    }
    for name, content in contents.items():
        raw = content.encode(encoding)
        path = tmp_path / name
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        if name.endswith("jsonl") and encoding == "utf-16":
            with pytest.raises(ValueError, match=r"a\.jsonl is in UTF-16"):
                load_corpus(str(path), "all", streaming=streaming)
            continue
        texts = [row["text"] for row in load_corpus(str(path), "all", streaming=streaming)]
        assert "".join(texts).replace("\n", "") == "naïvecafé"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n' * 70_000 + b'{"text": oops}\n', r"a\.jsonl.*line 70001"),
        ("a.csv", b"text,label\na,1\nb,2,3,4\n", r"a\.csv.*line 3"),
        ("a.csv", "text\ncafé\n".encode("latin-1"), r"a\.csv is not in UTF-8: .* at byte 8"),
        ("a.jsonl", '{"text": "café"}\n'.encode("latin-1"), r"a\.jsonl is not in UTF-8"),
        ("a.txt", "text".encode("utf-16-le"), r"a\.txt is in UTF-16, or no text"),
        ("a.csv.gz", b"text\na\n", r"cannot read .*a\.csv\.gz"),
    ],
)
def test_an_error_names_file_and_line(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(str(tmp_path), "all", streaming=streaming)
