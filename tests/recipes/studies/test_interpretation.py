"""Interpretability: the axioms that attributions obey, the model's own output at the end of the lens, and the page."""

import base64
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models.tiny import tiny_model
from transformers import BertConfig, BertForMaskedLM

from hf_llm.evaluation.opening import opened
from studies import pictures
from studies.interpretation import attention_maps, integrated_gradients, logit_lens, make_example, shown


RECIPE = Path(__file__).parents[3] / "recipes" / "inspect_model.py"
STACKS = ("decoder", "encoder", "encoder-decoder")
TEXTS = {"decoder": ("To be, or", ""), "encoder": ("To [MASK], or", ""), "encoder-decoder": ("To be, or", "Être")}


@pytest.fixture(params=STACKS)
def case(request, language_models):
    model = language_models[request.param]
    return model, make_example(model, *TEXTS[request.param])


def test_examples_say_what_is_predicted(language_models):
    positions = {stack: make_example(language_models[stack], *TEXTS[stack]).position for stack in STACKS}
    assert positions == {"decoder": 9, "encoder": 4, "encoder-decoder": 5}  # behind <bos>, at the mask, behind Être
    with pytest.raises(ValueError, match="only for an encoder-decoder"):
        make_example(language_models["decoder"], "a", "b")
    with pytest.raises(ValueError, match="text is empty"):
        make_example(language_models["decoder"], "")


def test_attention_maps_are_distributions_over_what_may_be_seen(case):
    model, example = case
    before = model.model.config._attn_implementation
    maps = attention_maps(model, example)
    kinds = {"encoder", "decoder", "cross"} if model.stack == "encoder-decoder" else {"attention"}
    assert set(maps) == kinds
    for kind, weights in maps.items():
        assert weights.shape[:2] == (2, 4)  # layers, heads
        assert weights.sum(-1) == pytest.approx(1, abs=1e-5)
        causal = kind == "decoder" or model.stack == "decoder"
        assert bool((np.triu(weights, 1) == 0).all()) is causal
    assert model.model.config._attn_implementation == before


@torch.no_grad()
def test_the_lens_ends_with_the_models_own_output(case):
    model, example = case
    lens = logit_lens(model, example)
    logits = model.model(**example.inputs).logits[0]
    assert lens.shape == (3, *logits.shape)
    torch.testing.assert_close(lens[-1], logits, rtol=0, atol=0)
    assert (lens[1] - logits).abs().max() > 1e-2


@torch.no_grad()
def test_the_lens_of_fewer_layers_is_a_model_with_fewer_layers(language_models):
    """Against a model that really ends after the first layer."""
    model = language_models["decoder"]
    example = make_example(model, "To be")
    shorter = tiny_model("decoder", vocab_size=512, position_embedding="rope", num_hidden_layers=1)
    weights = {name: value for name, value in model.model.state_dict().items() if ".layers.1." not in name}
    shorter.load_state_dict(weights)
    expected = shorter(**example.inputs).logits[0]
    torch.testing.assert_close(logit_lens(model, example)[1], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_lens_with_shared_layers(tokenizers):
    shared = opened(tiny_model("decoder", vocab_size=512, layer_sharing=[0, 0]), tokenizers["decoder"])
    example = make_example(shared, "To be")
    lens = logit_lens(shared, example)
    assert len(lens) == 3
    torch.testing.assert_close(lens[-1], shared.model(**example.inputs).logits[0], rtol=0, atol=0)


@torch.no_grad()
def test_other_models_are_pointed_to_the_import(tokenizers):
    config = BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    native = opened(BertForMaskedLM(config), tokenizers["encoder"])
    with pytest.raises(ValueError, match="import the checkpoint with `hf-llm import`"):
        logit_lens(native, make_example(native, "a [MASK]"))


def test_attributions_are_complete(case):
    """Completeness (axiom 3 of https://arxiv.org/abs/1703.01365), to 1e-3 nats with 256 points."""
    model, example = case
    found = integrated_gradients(model, example, points=256)
    gained = found.log_probability - found.baseline_log_probability
    assert abs(gained) > 1e-2
    assert found.scores.sum() == pytest.approx(gained, abs=1e-3)
    with torch.no_grad():
        logits = model.model(**example.inputs).logits[0, example.position]
    assert found.token_id == int(logits.argmax())
    assert found.log_probability == pytest.approx(float(logits.log_softmax(-1).max()), abs=1e-5)


def test_special_tokens_and_what_is_not_seen_have_no_attribution(language_models):
    encoder = language_models["encoder"]
    example = make_example(encoder, "To [MASK], or")
    scores = integrated_gradients(encoder, example).scores
    special = [i in encoder.tokenizer.all_special_ids for i in example.inputs["input_ids"][0].tolist()]
    assert (scores[special] == 0).all() and (scores[~np.array(special)] != 0).all()


def test_white_space_is_shown(tokenizers):
    ids = tokenizers["decoder"]("a \n", return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    assert shown(tokenizers["decoder"], ids) == ["a", "·", "⏎"]


def test_attention_of_a_large_model_is_one_mosaic():
    figure = pictures.draw_attention(np.full((9, 8, 4, 4), 0.25), list("abcd"), list("abcd"), "Attention")
    mosaic = figure.axes[0].images[0].get_array()
    assert mosaic.shape == (9 * 5, 8 * 5) and mosaic.count() == 9 * 8 * 16  # a gap beside each map


@pytest.mark.parametrize("stack", ["encoder", "encoder-decoder"])
def test_the_page_holds_its_pictures(stack, language_models, tmp_path, monkeypatch, capsys):
    model = language_models[stack]
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    spec = importlib.util.spec_from_file_location("inspect_model_recipe", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    text, target = TEXTS[stack]
    words = [str(tmp_path / "model"), "--text", text, "--points", "8", *(["--target", target] if target else [])]
    monkeypatch.setattr(sys, "argv", ["inspect_model.py", *words])
    assert recipe.main() == 0
    folder = tmp_path / "model" / "inspection"
    page = (folder / "index.html").read_text()
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == len(list(folder.glob("*.png"))) == (5 if stack == "encoder-decoder" else 3)
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "<script" not in page and "http" not in page

    monkeypatch.setattr(sys, "argv", ["inspect_model.py", *words, "--predict", "ab"])
    assert recipe.main() == 2
    assert "--predict 'ab' is 2 tokens; name a single one" in capsys.readouterr().err
