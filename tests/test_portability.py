"""Linux alone is not needed: imports do without its modules, and training takes workers that are spawned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]

# what Windows or macOS lack is not there for the package and the recipes; what they import may find out for itself
IMPORT = """
import builtins, os, pkgutil, runpy, sys

def guarded(name, globals=None, *args, find=__import__, **kwargs):
    if name in ("fcntl", "grp", "pwd", "resource", "termios"):
        if (globals or {}).get("__name__", "").split(".")[0] in ("hf_llm", "recipe", "studies"):
            raise ModuleNotFoundError(name)
    return find(name, globals, *args, **kwargs)

builtins.__import__ = guarded
for name in ("killpg", "sched_getaffinity"):
    delattr(os, name)
for path in sys.argv[1:]:
    if path.endswith(".py"):
        sys.path.insert(0, os.path.dirname(path))
        runpy.run_path(path, run_name="recipe")
        continue
    package = __import__(path, fromlist=["__path__"])
    for module in pkgutil.walk_packages(getattr(package, "__path__", ()), path + "."):
        if ".metrics." not in module.name:  # scripts of `evaluate`, which loads them by path
            __import__(module.name)
"""
RECIPES = [str(path) for folder in ("recipes", "recipes/benchmarks") for path in (ROOT / folder).glob("*.py")]


@pytest.mark.slow
def test_imports_need_nothing_of_linux():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", IMPORT, "hf_llm", *RECIPES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.mark.slow
def test_workers_may_be_spawned(tmp_path):
    """A run of the recipe whose data comes from a process that inherits nothing (macOS, Windows, Python 3.14)."""
    (tmp_path / "corpus").mkdir()
    for i in range(120):
        (tmp_path / f"corpus/{i}.txt").write_text("".join(f"def f_{i}_{j}(x): return x + {j}\n" for j in range(8)))
    config = {
        "output_dir": str(tmp_path / "run"),
        "model": {"model_type": "hf_llm_decoder", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "tokenizer": {"vocab_size": 300},
        "data": {
            "corpus": str(tmp_path / "corpus/*.txt"), "row_length": 32, "validation_rows": 4,
            "cache_dir": str(tmp_path / "packed"),
        },
        "objective": {"name": "causal"},
        "training": {
            "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none",
            "dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn",
        },
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))  # which is YAML, too
    run = subprocess.run(
        [sys.executable, str(ROOT / "recipes/pretrain.py"), "--config", str(tmp_path / "run.yaml")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["step"] == 2
