"""recipes/pretrain.py: every configuration file, and how a user's error is reported."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from hf_llm.data import make_objective, train_tokenizer
from hf_llm.training.pretraining import Pretraining, build_model_config, pretrain
from hf_llm.training.stacks import STACKS


RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = sorted(
    path
    for path in (RECIPES / "configs").glob("*.yaml")
    if {"model_type:", "objective:"} <= set(path.read_text().split())  # other recipes open a model
    and "from-decoder" not in path.stem  # has the sizes of the decoder: tests/surgery runs them
)
TINY = ["demo", "decoder-tiny", "encoder-tiny", "encoder-decoder-tiny"]


def run_recipe(monkeypatch, *arguments: str) -> int:
    """The exit status of recipes/pretrain.py with these words behind it."""
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPES / "pretrain.py"), run_name="__main__")
    return ended.value.code


def test_an_error_of_the_user_is_one_line_and_exit_code_2(monkeypatch, capsys):
    assert run_recipe(monkeypatch, "--config", str(RECIPES / "configs" / "demo.yaml"), "--model.hiden_size", "8") == 2
    error = capsys.readouterr().err
    assert error == "pretrain.py: error: unknown key 'model.hiden_size'; did you mean 'hidden_size'?\n"


def test_help_says_of_every_key_what_it_is(monkeypatch, capsys):
    assert run_recipe(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    for line in ("seed: int = 0\n    of initialisation", "data.row_length: int = 512\n    tokens of a row"):
        assert f"\n{line}" in told
    keys = {line.partition(":")[0] for line in told.splitlines()}
    assert {"training.schedule", "training.weight_decay", "model.norm_type", "model.share_embeddings"} <= keys
    assert not {"training.seed", "training.optim"} & keys


def test_print_config_prints_what_would_be_run(monkeypatch, capsys, tmp_path):
    demo = str(RECIPES / "configs" / "demo.yaml")
    assert run_recipe(monkeypatch, "--config", demo, "--training.max_steps", "3", "--print_config") == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    printed = Pretraining.load(tmp_path / "printed.yaml")
    assert printed == Pretraining.load(demo, ["--training.max_steps", "3"]) and printed.training["max_steps"] == 3


@pytest.fixture(scope="module")
def tokenizers():
    return {
        stack.name: train_tokenizer(["a b c d e f g"] * 9, "byte", None, stack=stack.name, show_progress=False)
        for stack in STACKS.values()
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_legal_and_builds_its_model(path, tokenizers):
    config = Pretraining.load(path)
    for part in [config.model[name] for name in ("encoder", "decoder") if name in config.model] or [config.model]:
        part["vocab_size"] = config.tokenizer.vocab_size  # the tokenizer itself is a smaller one here
    stack = STACKS[config.model["model_type"]]
    tokenizer = tokenizers[stack.name]
    options = {k: v for k, v in config.objective.items() if k != "name"}
    assert make_objective(config.objective["name"], tokenizer, stack=stack.name, **options).stack == stack.name
    model_config = build_model_config(config, tokenizer)
    assert model_config.model_type == config.model["model_type"]
    with torch.device("meta"):
        model = stack.auto_class.from_config(model_config)
    count = sum(p.numel() for p in model.parameters())
    millions = path.stem.rpartition("-")[2]
    if millions.endswith("m"):
        assert count / 1e6 == pytest.approx(int(millions[:-1]), rel=0.1)
    else:
        assert count < 20e6


@pytest.mark.parametrize("name", TINY)
def test_tiny_configurations_run_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.training.report.draw_figures", lambda *args, **kwargs: None)
    for i in range(60):
        text = "\n".join(f"def function_{i}_{j}(x):\n    return x * {i * j % 17} + {j}\n" for j in range(20))
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
    config = Pretraining.load(RECIPES / "configs" / f"{name}.yaml")
    config.output_dir, config.cpu_threads = str(tmp_path / "run"), 1
    config.data.corpus, config.data.cache_dir = str(tmp_path / "*.txt"), str(tmp_path / "rows")
    config.data.validation_rows, config.data.held_out_fraction = 2, 0.2
    config.samples.max_new_tokens = 2
    config.training |= {"max_steps": 2, "save_steps": 2, "warmup_steps": 1, "per_device_train_batch_size": 1}
    config.training |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    pretrain(config)
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_opens_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.use_cpu == (path.stem == "cpu") and config.num_machines == (2 if path.stem == "multinode" else 1)
