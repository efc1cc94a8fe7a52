"""The tokenizer recipe, as a user launches it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from train_tokenizer import main, tokenizer_report
from transformers import AutoTokenizer

from hf_llm.data import train_tokenizer


RECIPE = Path(__file__).parents[2] / "recipes" / "train_tokenizer.py"


def test_recipe_writes_a_tokenizer_and_its_report(tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, text in enumerate(DOCUMENTS):
        (corpus / f"{i}.txt").write_text(text, encoding="utf-8")
    output = tmp_path / "tokenizer"
    options = ["--corpus", corpus, "--vocab-size", 350, "--stack", "encoder", "--output", output]
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, options)])
    runpy.run_path(str(RECIPE), run_name="__main__")
    report = json.loads((output / "tokenizer_report.json").read_text())
    assert report["vocab_size"] == 350 == len(AutoTokenizer.from_pretrained(output))
    assert f'"bytes_per_token": {report["bytes_per_token"]}' in capsys.readouterr().out


def test_recipe_names_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--corpus", str(tmp_path / "missing.txt"), "--quiet"])
    with pytest.raises(SystemExit, match="error: corpus .*no such file"):
        runpy.run_path(str(RECIPE), run_name="__main__")


DOCUMENTS = [f"the quick brown fox jumps over {n} lazy dogs" for n in range(100)]


def trained(algorithm):
    size = None if algorithm == "byte" else 350
    return train_tokenizer(DOCUMENTS, algorithm, size, show_progress=False)


def test_report():
    tokenizer = trained("bpe")
    report = tokenizer_report(tokenizer, DOCUMENTS, "bpe")
    assert report["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert report["vocab_size"] == len(tokenizer) and report["round_trip"] == 1.0
    assert 2 < report["bytes_per_token"] == report["bytes"] / report["tokens"]
    assert tokenizer_report(trained("byte"), DOCUMENTS, "byte")["bytes_per_token"] == 1.0
    assert tokenizer_report(trained("word"), ["字 the"], "word")["unknown_fraction"] == 0.5


def test_report_refuses_a_broken_promise():
    with pytest.raises(ValueError, match="promises decode"):
        tokenizer_report(trained("wordpiece"), ["two  spaces"], "bpe")


def test_sources_without_weights_are_read_once(tmp_path):
    for name, count in {"few": 3, "many": 90}.items():
        rows = [json.dumps({"text": f"{name} words in document {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    corpora = [str(tmp_path / f"{name}.jsonl") for name in ("few", "many")]
    options = ["--held-out-fraction", "0", "--vocab-size", "300", "--quiet", "--output", str(tmp_path / "tokenizer")]
    assert main(["--corpus", *corpora, *options])["documents"] == 93  # reported on all
