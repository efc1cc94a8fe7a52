"""Tiny runs, one per stack, on a corpus of a few kilobytes."""

import copy
from pathlib import Path

import pytest
import yaml


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "residual_dropout": 0.1,
}
MODELS = {
    "decoder": {"model_type": "hf_llm_decoder", **SIZES},
    "encoder": {"model_type": "hf_llm_encoder", **SIZES},
    "encoder-decoder": {"model_type": "hf_llm_encoder_decoder", "encoder": SIZES, "decoder": SIZES},
}
OBJECTIVES = {"decoder": "causal", "encoder": "masked_lm", "encoder-decoder": "span_corruption"}
PROMPTS = {"decoder": "def ", "encoder": "def [MASK](x):", "encoder-decoder": "def <extra_id_0>(x):"}


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory):
    """About 40 kB of text in 120 documents."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(120):
        lines = [f"def function_{i}_{j}(x):\n    return x * {i * j % 17} + {j}\n" for j in range(8)]
        (folder / f"module_{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def settings(corpus_dir, tmp_path):
    """`settings(stack)`: the nested dict of a run that takes a second or two."""

    def make(stack: str = "decoder", **training) -> dict:
        return copy.deepcopy(
            {
                "output_dir": str(tmp_path / "run"),
                "model": MODELS[stack],
                "tokenizer": {"vocab_size": 480},
                "data": {
                    "corpus": str(corpus_dir / "*.txt"),
                    "row_length": 48,
                    "validation_rows": 8,
                    "cache_dir": str(corpus_dir.parent / "packed"),
                },
                "objective": {"name": OBJECTIVES[stack]},
                "training": {
                    "max_steps": 6,
                    "save_steps": 2,
                    "eval_steps": 3,
                    "logging_steps": 1,
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 2,
                    "learning_rate": 3e-3,
                    "use_cpu": True,
                    "disable_tqdm": True,
                    "report_to": "none",
                    **training,
                },
                "samples": {"prompts": [PROMPTS[stack]], "max_new_tokens": 4},
                "cpu_threads": 1,
            }
        )

    return make


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes longer than training these models."""
    monkeypatch.setattr("hf_llm.training.report.draw_figures", lambda *args, **kwargs: None)


@pytest.fixture
def card_template():
    return Path(__file__).parents[2] / "model_cards" / "template.md"


@pytest.fixture
def write_config(tmp_path):
    """Writes settings as YAML and returns the path."""

    def write(settings: dict, name: str = "run.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path

    return write
