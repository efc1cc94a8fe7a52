"""The evaluation recipes: every configuration file, and how a user's error is reported."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from evaluation.conftest import language_models, tokenizers  # noqa: F401 (fixtures)

from hf_llm.evaluation.evaluating import EvaluationConfig
from hf_llm.training.settings import build_section, load_settings
from studies import cells
from studies.long_context import LongContext
from studies.needle import NeedleConfig
from studies.scaling_study import Ladder


RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = RECIPES / "configs" / "evaluation"
SECTIONS = {"ladder": Ladder, "long_context": LongContext, "needle": NeedleConfig}


def recipe_of(name: str):
    """A recipe as a module, under a name that is not a library's."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def test_evaluate_prints_what_it_measures(language_models, monkeypatch, capsys, tmp_path):  # noqa: F811
    decoder = language_models["decoder"]
    decoder.model.save_pretrained(tmp_path / "model")
    decoder.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("Two roads diverged in a yellow wood")
    words = "--model model --data texts.txt --split train --held_out_fraction 0 --prompts [To]".split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
    assert recipe_of("evaluate").main() == 0
    metrics = json.loads((tmp_path / "model" / "evaluation" / "perplexity.json").read_text())["metrics"]
    shown = capsys.readouterr().out
    assert "model: perplexity on texts.txt, train split" in shown and f"{metrics['bits_per_byte']:.4f}" in shown
    assert "\nTo\n-> " in shown


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_valid(path):
    settings = load_settings(path)
    if "data" in settings and "model_type" not in settings["model"]:
        build_section(EvaluationConfig, settings)
        return
    found = {name: settings.pop(name) for name in SECTIONS if name in settings}
    for name, section in found.items():
        study = build_section(SECTIONS[name], section, name)
        for fields in [*getattr(study, "models", []), *getattr(study, "schemes", {}).values()]:
            cells.checked({**settings, "model": {**settings["model"], **fields}})
    if "model" in settings:
        cells.checked(settings)


@pytest.mark.parametrize(
    "words, message",
    [
        ("evaluate --modle x", "unknown key 'modle'; did you mean 'model'?"),
        ("evaluate --model nowhere --data texts.jsonl", "corpus 'texts.jsonl': no such file"),
        ("ablate --config nowhere.yaml --vary a=1,2", "--config nowhere.yaml: No such file or directory"),
        (f"ablate --config {CONFIGS}/ablation.yaml", "--vary is missing: say what to vary"),
        (f"scaling_laws --config {CONFIGS}/scaling-laws.yaml --ladder.step [1]", "unknown key 'ladder.step'"),
        (f"long_context positions --config {CONFIGS}/long-context.yaml --long_context.schemes {{}}", "is empty"),
        (f"long_context needle --config {CONFIGS}/needle.yaml --needle.depths [2]", "must be between 0 and 1"),
        (f"long_context needle --config {CONFIGS}/needle.yaml --needle.model.hiden_size 8", "hiden_size"),
        ("inspect_model nowhere --text a", "model = 'nowhere' cannot be opened"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(words, message, monkeypatch, capsys, tmp_path):
    name, *arguments = words.split()
    recipe = recipe_of(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    assert recipe.main() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{name}.py: error: ") and message in error
