"""Checkpoints as a run leaves them, small and with everything that publishing looks at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from models.tiny import tiny_model

from hf_llm.data import train_tokenizer
from hf_llm.publishing.folder import PIPELINE_TAGS


REPOSITORY = Path(__file__).parents[2]
TEXTS = ["def main(arguments):\n    return arguments\n"] * 9


def save_checkpoint(folder: Path, stack: str, **fields) -> Path:
    """A language model of a stack with its tokenizer and card, as training leaves it."""
    tokenizer = train_tokenizer(TEXTS, "byte", None, stack=stack.replace("_", "-"), show_progress=False)
    size = len(tokenizer) + 7
    model = tiny_model(stack, vocab_size=size, max_position_embeddings=128, **fields)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    head = type(model).__name__.removeprefix("LLM").removeprefix("EncoderDecoder")
    tag = next(tag for name, tag in PIPELINE_TAGS.items() if head.endswith(name))
    data = ModelCardData(library_name="transformers", pipeline_tag=tag, license="apache-2.0")
    ModelCard(f"---\n{data.to_yaml()}\n---\n\nA model that was drawn at random.\n").save(folder / "README.md")
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("whole") / "decoder", "decoder")


@pytest.fixture
def hf_llm_command():
    """`hf_llm_command("check", path, variable=value)` runs the command in a process of its own."""

    def run(*words, **environment) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        command = [sys.executable, "-m", "hf_llm.cli", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)

    return run
