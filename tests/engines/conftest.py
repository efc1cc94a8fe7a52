"""A decoder as the demo's recipe leaves it, with a chat template."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[2]
STEPS = 16


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """Its checkpoint, after a few steps."""
    folder = tmp_path_factory.mktemp("demo")
    tokenizer = ["--corpus", "python-stdlib", "--vocab-size", "4096", "--max-documents", "200", "--chat-template"]
    _run("train_tokenizer", *tokenizer, "--quiet", "--output", folder / "tokenizer")
    steps = [f"--training.{name}={STEPS}" for name in ("max_steps", "eval_steps", "save_steps")]
    small = ["--data.validation_rows=8", "--samples.max_new_tokens=8", "--cpu_threads=1"]
    config = REPOSITORY / "recipes" / "configs" / "demo.yaml"
    _run("pretrain", "--config", config, "--tokenizer.path", folder / "tokenizer", *steps, *small,
         "--output_dir", folder / "model")  # fmt: skip
    return folder / "model"


def _run(recipe: str, *arguments) -> None:
    command = [sys.executable, REPOSITORY / "recipes" / f"{recipe}.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
