"""Runs that start from a decoder: what the recipes do, and what they refuse."""

import logging
from pathlib import Path

import pytest
import torch
from models.tiny import SIZES, redraw
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_llm import LLMDecoderConfig, LLMDecoderForCausalLM
from hf_llm.data import train_tokenizer
from hf_llm.training.pretraining import Pretraining, pretrain


ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in (ROOT / "recipes" / "configs").glob("*from-decoder.yaml")}
CARD_TEMPLATE = ROOT / "model_cards" / "template.md"
VOCABULARY = 259  # bytes and three special tokens


def ours(**fields):
    return LLMDecoderForCausalLM(LLMDecoderConfig(**{**SIZES, "vocab_size": VOCABULARY, "bos_token_id": 1, **fields}))


def llama():
    sizes = {name: value for name, value in SIZES.items() if name != "pad_token_id"}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": VOCABULARY})).bfloat16()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Writes a decoder and its tokenizer, and gives a recipe's configuration that starts from it."""
    monkeypatch.setattr("hf_llm.training.report.draw_figures", lambda *args, **kwargs: None)
    for i in range(40):
        text = "\n".join(f"def function_{i}_{j}(x):\n    return x * {i * j % 17} + {j}\n" for j in range(20))
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")

    def make(decoder, path: Path, steps: int = 2):
        redraw(decoder, std=0.02).save_pretrained(tmp_path / "decoder")
        train_tokenizer(["x"], "byte", None, show_progress=False).save_pretrained(tmp_path / "decoder")
        config = Pretraining.load(path, ["--from_decoder.path", str(tmp_path / "decoder")])
        config.output_dir, config.cpu_threads = str(tmp_path / "run"), 1
        config.data.corpus, config.data.cache_dir = str(tmp_path / "*.txt"), str(tmp_path / "rows")
        config.data.validation_rows, config.data.held_out_fraction, config.data.row_length = 2, 0.2, 64
        config.samples.max_new_tokens = 2
        config.training |= {"max_steps": steps, "save_steps": 1, "eval_steps": 1, "warmup_steps": 1}
        config.training |= {"per_device_train_batch_size": 1, "report_to": "none", "disable_tqdm": True}
        config.training |= {"use_cpu": True, "bf16": False}
        return config

    return make


@pytest.mark.parametrize("make", (ours, llama))
@pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS)
def test_the_recipes_run_from_a_decoder_of_either_kind(path, make, start, tmp_path):
    decoder = make()
    config = start(decoder, path)
    config.training |= {"learning_rate": 0.0, "weight_decay": 0.0}
    pretrain(config, CARD_TEMPLATE)
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert f"pretrained from the decoder {tmp_path / 'decoder'} with hf_llm" in card
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert model.config.model_type == config.model["model_type"] and model.dtype == torch.float32
    stacks = (model.encoder, model.decoder) if model.config.is_encoder_decoder else (model,)
    for stack in stacks:
        expected = decoder.model.layers[1].mlp.up_proj.weight.float()
        assert stack.layers[1].mlp.up_proj.weight.equal(expected)
        assert stack.embed_tokens.weight[:VOCABULARY].equal(decoder.get_input_embeddings().weight.float())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.mask_token and len(tokenizer) <= model.config.vocab_size == stacks[0].embed_tokens.num_embeddings


def test_tied_halves_train_on_and_resume(start, tmp_path, caplog):
    config = start(ours(), CONFIGS["encoder-decoder-from-decoder"])
    config.from_decoder.tied, config.from_decoder.extra_special_tokens = True, ["[R]", "[S]", "[X]"]
    config.objective = {"name": "ul2", "mode_tokens": True}
    pretrain(config)
    config.training["max_steps"] = 3
    with caplog.at_level(logging.WARNING):
        pretrain(config)
    assert any("resuming" in record.getMessage() for record in caplog.records)
    model = AutoModel.from_pretrained(tmp_path / "run")
    shared = model.encoder.layers[0].mlp.up_proj.weight
    assert shared is model.decoder.layers[0].mlp.up_proj.weight
    assert not shared.equal(ours().model.layers[0].mlp.up_proj.weight)


def settings(**more) -> dict:
    return {
        "output_dir": "x",
        "model": {"model_type": "hf_llm_encoder"},
        "training": {},
        "objective": {"name": "masked_lm"},
        "from_decoder": {"path": "y"},
        **more,
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": {"path": "z"}}, "from_decoder has no effect with model.path = 'z'"),
        ({"word_vectors": __file__}, "word_vectors = .* has no effect with from_decoder"),
        ({"tokenizer": {"path": "z"}}, "tokenizer.path = 'z' has no effect with from_decoder"),
        ({"model": {"model_type": "hf_llm_decoder"}}, "model.path goes on with a decoder"),
        ({"from_decoder": {"path": "y", "tied": True}}, "from_decoder.tied = True is for an encoder-decoder"),
        (
            {"from_decoder": {"path": "y", "cross_attention": "zero"}},
            "from_decoder.cross_attention = 'zero' is for an encoder-decoder",
        ),
        ({"from_decoder": {"pth": "y"}}, "unknown key 'from_decoder.pth'; did you mean 'path'"),
    ],
)
def test_settings_that_contradict_each_other(more, message):
    with pytest.raises(ValueError, match=message):
        Pretraining.from_dict(settings(**more))
