"""The tokenizer recipe, as a user launches it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer


RECIPE = Path(__file__).parents[2] / "recipes" / "train_tokenizer.py"


def test_recipe_writes_a_tokenizer_and_its_report(tmp_path, documents):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, text in enumerate(documents):
        (corpus / f"{i}.txt").write_text(text, encoding="utf-8")
    output = tmp_path / "tokenizer"
    options = ["--corpus", corpus, "--vocab-size", "400", "--stack", "encoder", "--output", output]
    done = subprocess.run([sys.executable, RECIPE, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "tokenizer_report.json").read_text())
    assert report["vocab_size"] == 400 == len(AutoTokenizer.from_pretrained(output))
    assert f'"bytes_per_token": {report["bytes_per_token"]}' in done.stdout


def test_recipe_names_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--corpus", str(tmp_path / "missing.txt"), "--quiet"])
    with pytest.raises(SystemExit, match="error: corpus .*no such file"):
        runpy.run_path(str(RECIPE), run_name="__main__")
