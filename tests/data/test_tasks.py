"""Labelled data by name, file, folder or mapping: splits, columns, bad input."""

import json

import datasets
import pytest

from hf_llm.data.tasks import SPLITS, TASKS, Task, load_task, parse_task


@pytest.fixture
def examples():
    return [{"sentence": f"text {i}", "label": i % 2, "group": i // 4} for i in range(400)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path, examples):
    return write_jsonl(tmp_path / "all.jsonl", examples)


def texts(dataset):
    return list(dataset["sentence"])


def test_splits_by_content_are_disjoint_complete_and_independent_of_order(tmp_path, file, examples):
    parts = {split: texts(load_task(file, split)) for split in SPLITS}
    assert sorted(sum(parts.values(), [])) == sorted(e["sentence"] for e in examples)
    assert 20 < len(parts["validation"]) < 60 and 20 < len(parts["test"]) < 60
    backwards = write_jsonl(tmp_path / "backwards.jsonl", examples[::-1])
    assert texts(load_task(backwards, "test")) == parts["test"][::-1]


def test_examples_of_a_group_stay_together(file):
    spec = {"name": file, "group_by": ["group"]}
    groups = [set(load_task(spec, split)["group"]) for split in SPLITS]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_parts_of_every_split_are_disjoint_and_complete(file):
    for split in SPLITS:
        parts = [texts(load_task({"name": file, "part": f"{i}/2"}, split)) for i in (1, 2)]
        assert sorted(sum(parts, [])) == sorted(texts(load_task(file, split)))
        assert all(0.3 < len(part) / sum(map(len, parts)) < 0.7 for part in parts)
    grouped = [load_task({"name": file, "part": f"{i}/3", "group_by": ["group"]}) for i in (1, 2, 3)]
    groups = [set(part["group"]) for part in grouped]
    assert not (groups[0] & groups[1] or groups[1] & groups[2] or groups[0] & groups[2])


@pytest.mark.parametrize("part", ["0/2", "3/2", "half", "1"])
def test_bad_parts(file, part):
    with pytest.raises(ValueError, match=f"part='{part}' must be NUMBER/COUNT"):
        load_task({"name": file, "part": part})


def test_fractions(file):
    spec = {"name": file, "validation_fraction": 0.5, "test_fraction": 0}
    assert 160 < len(load_task(spec, "validation")) < 240
    with pytest.raises(ValueError, match="split 'test' is empty .*test_fraction=0"):
        load_task(spec, "test")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_formats(tmp_path, file, examples, suffix):
    path = tmp_path / f"all.{suffix}"
    getattr(datasets.Dataset.from_list(examples), f"to_{suffix}")(path)
    assert texts(load_task(str(path), "test")) == texts(load_task(file, "test"))


def test_files_of_splits_and_renamed_columns(tmp_path, file, examples):
    dev = write_jsonl(tmp_path / "dev.jsonl", examples[:10])
    spec = {"name": file, "splits": {"validation": dev}, "columns": {"text": "sentence"}, "test_fraction": 0}
    assert load_task(spec, "validation")["text"][:] == [e["sentence"] for e in examples[:10]]
    assert len(load_task(spec, "train")) == 400  # nothing is taken from it: validation is given, test is not wanted


def test_folder_with_named_splits(tmp_path, examples):
    for name, rows in {"train": examples[:300], "dev": examples[300:350]}.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert texts(load_task(str(tmp_path), "validation")) == texts(
        {"sentence": [e["sentence"] for e in examples[300:350]]}
    )
    train, test = (texts(load_task(str(tmp_path), split)) for split in ("train", "test"))
    assert len(train) + len(test) == 300 and not set(train) & set(test)


def test_embedded_set_is_built_once_for_each_set_of_options(datasets_cache, monkeypatch):
    built = []

    def rows(size: int = 100):
        built.append(size)
        yield from ({"text": str(i)} for i in range(size))

    features = datasets.Features({"text": datasets.Value("string")})
    entry = Task(rows, features, group_by=("text",), licence="MIT", source="a test", about="numbers")
    monkeypatch.setitem(TASKS, "numbers", entry)
    for _ in range(2):
        assert sum(len(load_task("numbers", split)) for split in SPLITS) == 100
        assert sum(len(load_task({"name": "numbers", "size": 50}, split)) for split in SPLITS) == 50
    assert built == [100, 50]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sentiment-rating", "did you mean 'sentiment-ratings'.*legal are sentiment-ratings, docstring-summaries"),
        ("nobody/nothing", "nobody/nothing.*cannot be read"),
        ("two words", "not a known name"),
        ("./missing.csv", "no such file"),
        (7, "must be a name"),
        ({"config": "x"}, "`name` is missing"),
        ({"name": "sentiment-ratings", "minimum": 1}, "unknown keys.*minimum.*legal keys are.*minimum_intensity"),
        ({"name": "piqa", "validation_fraction": 0.6, "test_fraction": 0.5}, "leave something to train on"),
        ({"name": "piqa", "splits": {"dev": "x"}}, r"splits has \['dev'\]; legal keys are train, validation, test"),
        ({"name": "docstring-code", "packages": ["no_such_package"]}, "no_such_package.*not installed"),
    ],
)
def test_bad_specifications(spec, message, datasets_cache):
    with pytest.raises(ValueError, match=message):
        load_task(spec)


def test_bad_columns_splits_and_files(tmp_path, file):
    (tmp_path / "broken.jsonl").write_text('{"text": "x"\nnot json')
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    for spec, message in {
        json.dumps(
            {"name": file, "columns": {"text": "body"}}
        ): r"columns=\['body'\] not found.*\['sentence', 'label'",
        json.dumps(
            {"name": file, "group_by": ["body"]}
        ): r"group_by=\['body'\] not found; its columns are \['sentence'",
        json.dumps({"name": file, "splits": {"train": "learn"}}): "splits.train='learn' not found",
        json.dumps({"name": str(tmp_path / "broken.jsonl")}): "cannot read",
        json.dumps({"name": str(tmp_path / "image.png")}): "image.png is of no known kind",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_task(json.loads(spec))
    with pytest.raises(ValueError, match="split='dev': must be one of train, validation, test"):
        load_task(file, "dev")


def test_options_beside_or_below(datasets_cache):
    beside = parse_task({"name": "sentiment-ratings", "minimum_intensity": 1.0, "test_fraction": 0.2})
    assert beside.options == {"minimum_intensity": 1.0} and beside.test_fraction == 0.2
    assert parse_task({"name": "sentiment-ratings", "options": {"minimum_intensity": 1.0}}).options == beside.options


def test_tagged_words_of_conll_files(tmp_path):
    (tmp_path / "ner.conll").write_text(
        "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"
    )
    (tmp_path / "two.conll").write_text("EU\tB-ORG\nrejects\tO\n")
    (tmp_path / "ud.conllu").write_text("# text = EU\n1\tEU\tEU\tPROPN\t_\t_\t0\troot\t_\t_\n")
    rows = {name: load_task(str(tmp_path / name), "all")[:] for name in ("ner.conll", "two.conll", "ud.conllu")}
    assert rows["ner.conll"]["words"] == [["EU", "rejects"], ["Peter"]]
    assert rows["ner.conll"]["tags"] == [["B-ORG", "O"], ["B-PER"]]
    assert rows["two.conll"] == {"words": [["EU", "rejects"]], "tags": [["B-ORG", "O"]]}
    assert rows["ud.conllu"]["words"] == [["EU"]] and rows["ud.conllu"]["tags"] == [["PROPN"]]
