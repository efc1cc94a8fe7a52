"""Checkpoints as a run leaves them, small and with everything that publishing looks at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers.utils.hub
from huggingface_hub import ModelCard, ModelCardData, constants
from models.tiny import tiny_model

from hf_llm.data import train_tokenizer
from hf_llm.publishing import Report, Row
from hf_llm.publishing.folder import PIPELINE_TAGS

from .hub_stub import TOKEN, HubStub


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
        command = [sys.executable, "-m", "hf_llm_cli", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)

    return run


@pytest.fixture
def hub(monkeypatch):
    """The stub of the Hub, used by this process."""
    with HubStub() as stub:
        monkeypatch.setattr(constants, "ENDPOINT", stub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", stub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield stub


@pytest.fixture
def passing(monkeypatch):
    """Every check passes at once: what is checked is another test's matter."""
    monkeypatch.setattr(
        "hf_llm.publishing.hub.check", lambda source, **_: Report(str(source), [Row("all", "passed", "")])
    )
