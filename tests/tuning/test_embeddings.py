"""Sentence embeddings: the loss and the saved model against sentence-transformers, a run, bad input."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from peft import AutoPeftModelForFeatureExtraction
from transformers import AutoModel, AutoTokenizer

from hf_llm.surgery.adapters import merge_adapter
from hf_llm.tuning.embeddings import Embeddings, SentencePairs, embed, embedding_head, ranks

from .small_models import SHORT_TRAINING, save_checkpoint, sentences, write_config, write_jsonl


sentence_transformers = pytest.importorskip("sentence_transformers")

CONFIGS = sorted(Path(__file__).parents[2].glob("recipes/configs/embeddings-*.yaml"))
TEMPLATE = Path(__file__).parents[2] / "model_cards" / "template.md"


def train(config, template: Path | None = None):
    return Embeddings(config, template).run()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    rows = [{"summary": s, "code": " ".join(reversed(s.split()))} for s in sentences(120)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {s: str(save_checkpoint(folder / s, s)) for s in ("encoder", "decoder", "encoder-decoder")}


@pytest.fixture
def settings(tmp_path, pairs, checkpoints):
    def make(**changes):
        sections = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": checkpoints["encoder"]},
            "data": {"dataset": pairs, "anchor": "summary", "positive": "code"},
            "training": SHORT_TRAINING,
        }
        return Embeddings.load(write_config(tmp_path / "run.yaml", sections, changes))

    return make


def test_retrieval_by_hand():
    positives = numpy.eye(3)
    anchors = numpy.array([[1.0, 0, 0], [0.9, 0.5, 0], [0.9, 0.8, 0.1]])
    assert ranks(anchors, positives) == [1, 2, 3]
    found = SentencePairs().score([{"rank": rank} for rank in (1, 2, 3, 11)])
    assert found == pytest.approx({"accuracy_at_1": 1 / 4, "mrr_at_10": (1 + 1 / 2 + 1 / 3) / 4})


@pytest.mark.parametrize(("stack", "pooling"), [("encoder", "mean"), ("decoder", "lasttoken")])
def test_a_run_opens_in_sentence_transformers(settings, checkpoints, stack, pooling):
    """It gives the embeddings that training saw, and learning shows."""
    training = {"max_steps": 24, "eval_steps": 24, "save_steps": 24}
    config = settings(model={"path": checkpoints[stack]}, embedding={"pooling": pooling}, training=training)
    train(config, TEMPLATE)
    metrics = json.loads(Path(config.output_dir, "metrics.json").read_text())
    assert metrics["mrr_at_10"] > metrics["baselines"]["before training"]["mrr_at_10"]
    texts = sentences(3) + ["red"]
    model = sentence_transformers.SentenceTransformer(config.output_dir, device="cpu")
    encoded = model.encode(texts, convert_to_tensor=True)
    plain, tokenizer = AutoModel.from_pretrained(config.output_dir), AutoTokenizer.from_pretrained(config.output_dir)
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    head = embedding_head(plain.config.hidden_size, pooling)
    with torch.no_grad():
        torch.testing.assert_close(encoded, embed(plain.eval(), dict(batch), head), rtol=0, atol=1e-5)
    assert "TF-IDF of words" in Path(config.output_dir, "README.md").read_text()


@pytest.mark.parametrize(("stack", "pooling"), [("encoder", "mean"), ("decoder", "lasttoken")])
def test_an_adapter_opens_in_sentence_transformers_and_merges(settings, checkpoints, stack, pooling):
    """The run leaves an adapter and the base that it names; both of them, or the two merged, give one embedding."""
    config = settings(
        model={"path": checkpoints[stack]},
        embedding={"pooling": pooling},
        peft={"method": "lora", "r": 4, "lora_alpha": 32},
        training={"max_steps": 12, "eval_steps": 12, "save_steps": 12, "learning_rate": 0.01},
    )
    train(config, TEMPLATE)
    run = Path(config.output_dir)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["mrr_at_10"] > metrics["baselines"]["before training"]["mrr_at_10"]
    assert metrics["trainable_parameters"] < metrics["parameters"] / 4
    assert not (run / "model.safetensors").exists() and (run / "adapter_model.safetensors").is_file()
    texts = sentences(3) + ["red"]
    encoded = sentence_transformers.SentenceTransformer(str(run), device="cpu").encode(texts, convert_to_tensor=True)
    batch = AutoTokenizer.from_pretrained(run)(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    base = AutoModel.from_pretrained(run / "base").eval()
    head = embedding_head(base.config.hidden_size, pooling)
    with torch.no_grad():
        assert (encoded - embed(base, dict(batch), head)).abs().max() > 1e-3
        reloaded = AutoPeftModelForFeatureExtraction.from_pretrained(run).eval()
        torch.testing.assert_close(encoded, embed(reloaded, dict(batch), head), rtol=0, atol=1e-5)
        merged = merge_adapter(base, run).eval()
        torch.testing.assert_close(encoded, embed(merged, dict(batch), head), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"path": "encoder-decoder"}}, "is an encoder-decoder; take an encoder or a decoder"),
        ({"data": {"anchor": "text"}}, "text"),
        ({"embedding": {"pooling": "men"}}, "did you mean 'mean'"),
        ({"embedding": {"scale": 0}}, "embedding.scale = 0 must be above 0"),
        ({"peft": {"method": "prompt"}}, "'prompt': sentence-transformers opens no such adapters"),
        ({"peft": {"method": "adalora"}}, "'adalora': sentence-transformers opens no such adapters"),
        ({"training": {"label_names": []}}, "training.label_names is not set here"),
    ],
)
def test_bad_configurations(settings, checkpoints, changes, message):
    model = {key: checkpoints.get(value, value) for key, value in changes.get("model", {}).items()}
    with pytest.raises(ValueError, match=message):
        train(settings(**{**changes, "model": model}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_run_two_steps(path, checkpoints, pairs, tmp_path):
    overrides = ["--output_dir", str(tmp_path), "--model.path", checkpoints["encoder"], "--data.dataset", pairs]
    train(Embeddings.load(path, [*overrides, "--data.max_length", "64", "--training.max_steps", "2"]))
    assert (tmp_path / "metrics.json").is_file()
