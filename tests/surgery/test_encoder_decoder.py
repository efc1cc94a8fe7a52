"""An encoder-decoder that starts from a decoder: where each weight comes from, and what it computes at first."""

import re

import pytest
import safetensors.torch
import torch
from models.tiny import inputs_of, logits_of, tokens

from hf_llm import (
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderDecoderForSequenceClassification,
    LLMEncoderDecoderModel,
    LLMEncoderModel,
)

from .decoders import NATIVE, decoder, hidden_states, native


# what the weights of each half are in the decoder, told apart from the code by names of their own
ORIGINS = (
    (r"decoder\.layers\.(\d)\.cross_attn\.([qkvo])_(proj|norm)\.(weight|bias)", r"layers.\1.self_attn.\2_\3.\4"),
    (r"decoder\.layers\.(\d)\.cross_attn_(norm|output_norm)\.(weight|bias)", r"layers.\1.self_attn_\2.\3"),
    (r"decoder\.layers\.(\d)\.cross_attn\.sinks", r"layers.\1.self_attn.sinks"),
    (r"(?:en|de)coder\.(embed_tokens|embed_positions|norm)\.(weight|bias)", r"\1.\2"),
    (
        r"(?:en|de)coder\.layers\.(\d)\.self_attn\.([qkvo])_(proj|norm)\.(weight|bias)",
        r"layers.\1.self_attn.\2_\3.\4",
    ),
    (r"(?:en|de)coder\.layers\.(\d)\.self_attn\.sinks", r"layers.\1.self_attn.sinks"),
    (r"(?:en|de)coder\.layers\.(\d)\.mlp\.(gate|up|down)_proj\.(weight|bias)", r"layers.\1.mlp.\2_proj.\3"),
    (r"(?:en|de)coder\.layers\.(\d)\.(self_attn|mlp)_(norm|output_norm)\.(weight|bias)", r"layers.\1.\2_\3.\4"),
)
PLACEMENTS = {
    "pre": {},
    "parallel": {"norm_placement": "parallel", "parallel_norms": 1},
    "parallel, biases": {
        "norm_placement": "parallel",
        "parallel_norms": 2,
        "norm_type": "layernorm",
        "norm_bias": True,
        "attention_bias": True,
    },
    "sandwich": {"norm_placement": "sandwich", "norm_type": "rmsnorm_unit_offset"},
    "sandwich, biases": {"norm_placement": "sandwich", "norm_type": "layernorm", "norm_bias": True},
    "branch": {"norm_placement": "branch", "qk_norm": "full"},
    "branch, no weights": {"norm_placement": "branch", "norm_type": "layernorm_non_affine", "qk_norm": None},
    "sinks": {"attention_sinks": True},
    "relative bias": {"position_embedding": "relative_bias"},
}


def origin(name: str) -> str:
    """The decoder's name of a weight of either half."""
    found = [match.expand(target) for pattern, target in ORIGINS if (match := re.fullmatch(pattern, name))]
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize("tied", (False, True))
@pytest.mark.parametrize(
    "fields",
    (
        {},
        {"norm_placement": "sandwich", "norm_type": "layernorm", "norm_bias": True, "attention_bias": True},
        {"position_embedding": "learned", "mlp_bias": True, "attention_sinks": True, "tie_word_embeddings": False},
    ),
)
def test_each_weight_comes_from_one_of_the_decoders(fields, tied):
    source = decoder(**fields)
    model = LLMEncoderDecoderForConditionalGeneration.from_decoder(source, tied=tied)
    theirs = dict(source.model.named_parameters())
    used = set()
    for name, weight in model.model.named_parameters(remove_duplicate=False):
        assert weight.equal(theirs[origin(name)]), name
        used.add(origin(name))
    assert used == set(theirs)
    assert model.lm_head.weight.equal(source.lm_head.weight)
    assert (model.lm_head.weight is model.model.decoder.embed_tokens.weight) == source.config.tie_word_embeddings
    halves = model.model
    assert halves.encoder.embed_tokens.weight is halves.decoder.embed_tokens.weight
    assert (halves.encoder.layers[1].mlp.up_proj.weight is halves.decoder.layers[1].mlp.up_proj.weight) == tied


@pytest.mark.parametrize("tied", (False, True))
@pytest.mark.parametrize("fields", PLACEMENTS.values(), ids=PLACEMENTS)
def test_with_silent_cross_attention_the_decoder_half_is_the_decoder(fields, tied):
    source = decoder(**fields)
    model = LLMEncoderDecoderForConditionalGeneration.from_decoder(source, tied=tied, cross_attention="zero")
    inputs = inputs_of("encoder_decoder")
    with torch.no_grad():
        expected = source(inputs["decoder_input_ids"]).logits
    torch.testing.assert_close(logits_of(model, inputs), expected, rtol=0, atol=1e-6)
    model(**inputs, labels=inputs["decoder_input_ids"]).loss.backward()
    silent = [p for name, p in model.named_parameters() if "cross_attn" in name and p.grad.abs().max() > 1e-6]
    assert silent  # and it can learn to speak


@pytest.mark.parametrize("family", NATIVE)
def test_a_native_decoder(family):
    """The decoder half is transformers' own model, and the encoder half what an encoder from it would be."""
    source, inputs = native(family), inputs_of("encoder_decoder")
    with torch.no_grad():
        expected = source(inputs["decoder_input_ids"]).logits
    model = LLMEncoderDecoderForConditionalGeneration.from_decoder(source, cross_attention="zero")
    torch.testing.assert_close(logits_of(model, inputs), expected, rtol=0, atol=1e-5)
    encoder = LLMEncoderModel.from_decoder(source)
    ids = inputs["input_ids"]
    assert hidden_states(model.model.encoder, ids).equal(hidden_states(encoder, ids))


def test_cross_attention_that_starts_from_self_attention_or_at_random():
    source = decoder()
    copied, silent, random = (
        LLMEncoderDecoderModel.from_decoder(source, cross_attention=choice).decoder.layers[0]
        for choice in ("self_attention", "zero", "random")
    )
    assert copied.cross_attn.o_proj.weight.equal(source.model.layers[0].self_attn.o_proj.weight)
    assert silent.cross_attn.v_proj.weight.equal(source.model.layers[0].self_attn.v_proj.weight)
    assert not silent.cross_attn.o_proj.weight.any()
    assert random.cross_attn.v_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert random.cross_attn_norm.weight.eq(1).all()
    assert random.self_attn.v_proj.weight.equal(source.model.layers[0].self_attn.v_proj.weight)


@pytest.mark.parametrize("tied", (False, True))
def test_tied_or_not_it_is_saved_and_reopened(tied, tmp_path):
    model = LLMEncoderDecoderForConditionalGeneration.from_decoder(decoder(), tied=tied)
    model.save_pretrained(tmp_path)
    names = list(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert any(".encoder." in name for name in names) != tied
    reopened = LLMEncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
    halves = reopened.model
    assert (halves.encoder.norm.weight is halves.decoder.norm.weight) == tied
    assert logits_of(reopened, inputs_of("encoder_decoder")).equal(logits_of(model, inputs_of("encoder_decoder")))


def test_it_generates_from_the_token_that_began_the_decoders_documents():
    model = LLMEncoderDecoderForConditionalGeneration.from_decoder(decoder(bos_token_id=2, eos_token_id=1))
    assert model.config.decoder_start_token_id == 2 and model.config.eos_token_id == 1
    assert model.generate(tokens(1, 5), max_new_tokens=3)[0, 0] == 2
    assert LLMEncoderDecoderModel.from_decoder(decoder()).config.decoder_start_token_id == 0  # padding


def test_fields_of_the_whole_and_of_the_halves():
    model = LLMEncoderDecoderForSequenceClassification.from_decoder(
        decoder(sliding_window=4, layer_types="S"), num_labels=3, pad_token_id=5, encoder={"attention_dropout": 0.5}
    )
    config = model.config
    assert model.score.weight.shape == (3, 32)
    assert (config.encoder.sliding_window, config.decoder.sliding_window) == (3, 4)
    assert (config.encoder.attention_dropout, config.decoder.attention_dropout) == (0.5, 0.0)
    assert {config.pad_token_id, config.encoder.pad_token_id, config.decoder.pad_token_id} == {5}


REFUSED = {
    "unknown": ({}, "zeros", "`cross_attention='zeros'` is not known. Legal values: self_attention, zero, random"),
    "another norm": ({"norm_placement": "post"}, "zero", "leave a decoder with `norm_placement='post'` as it was"),
    "the residual": ({"residual_from_norm": True}, "zero", "leave a decoder with `residual_from_norm=True` as it was"),
    "another width": (
        {"embedding_size": 16, "embedding_projection": "tokens"},
        "self_attention",
        "the encoder's output has `embedding_size=16` dimensions, but self-attention reads `hidden_size=32`",
    ),
}


@pytest.mark.parametrize(("fields", "choice", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cross_attention_cannot_start_from(fields, choice, message):
    with pytest.raises(ValueError, match=message):
        LLMEncoderDecoderModel.from_decoder(decoder(**fields), cross_attention=choice)
    if fields:
        LLMEncoderDecoderModel.from_decoder(decoder(**fields), cross_attention="random")
