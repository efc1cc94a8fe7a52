"""An encoder that starts from a decoder: the same weights, which compute the same where they see the same."""

import dataclasses

import pytest
import torch
from models.tiny import EXPERTS, redraw, tiny_model, tokens
from transformers import BertConfig, BertModel, MistralConfig, MistralForCausalLM, PreTrainedConfig

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderModel,
    LLMEncoderForMaskedLM,
    LLMEncoderForSequenceClassification,
    LLMEncoderModel,
)
from hf_llm.surgery.configurations import CHANGED, COPIED, LEFT_OUT

from .decoders import GROUPED, NATIVE, decoder, hidden_states, native


VARIANTS = {
    "default": {},
    "rope of a part, scaled": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "alibi": {"position_embedding": "alibi"},
    "sandwich, softcaps": {
        "norm_placement": "sandwich",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "embedding_multiplier": 5.0,
    },
    "parallel": {"norm_placement": "parallel", "norm_type": "layernorm", "norm_bias": True, "attention_bias": True},
    "post, sinks, untied": {
        "norm_placement": "post",
        "attention_sinks": True,
        "tie_word_embeddings": False,
        "lm_head_bias": True,
    },
    "projected embeddings": {"embedding_size": 16, "embedding_projection": "tokens"},
    "shared layers, experts": {"layer_sharing": [0, 0], **EXPERTS},
    "relative bias": {"position_embedding": "relative_bias"},
    "relative bias of each layer": {"position_embedding": "relative_bias", "relative_attention_bias_per_layer": True},
}


def test_every_field_of_a_decoder_is_accounted_for():
    groups = [*COPIED, *CHANGED, *LEFT_OUT]
    declared, inherited = dataclasses.fields(LLMDecoderConfig), dataclasses.fields(PreTrainedConfig)
    assert sorted(groups) == sorted({field.name for field in declared} - {field.name for field in inherited})


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_with_a_causal_mask_it_computes_what_the_decoder_does(fields):
    source = decoder(**fields)
    encoder = LLMEncoderModel.from_decoder(source)
    ids = tokens(2, 9)
    expected = hidden_states(source.model, ids)
    torch.testing.assert_close(hidden_states(encoder, ids, is_causal=True), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(hidden_states(encoder, ids)[:, 0], expected[:, 0], atol=1e-3)  # it looks ahead


@pytest.mark.parametrize("family", NATIVE)
def test_a_native_decoder(family, tmp_path):
    """The reference is transformers' own model, from memory and from its checkpoint."""
    source = native(family)
    source.save_pretrained(tmp_path)
    ids = tokens(2, 9)
    with torch.no_grad():
        expected = source(ids).logits
    for given in (source, tmp_path):
        encoder = LLMEncoderForMaskedLM.from_decoder(given)
        with torch.no_grad():
            torch.testing.assert_close(encoder(ids, is_causal=True).logits, expected, rtol=0, atol=1e-5)


def test_a_window_reaches_as_far_back_as_before():
    """One layer, whose last token sees the same in either stack."""
    for source in (
        decoder(num_hidden_layers=1, sliding_window=4, layer_types="S", position_embedding="none"),
        redraw(MistralForCausalLM(MistralConfig(**{**GROUPED, "num_hidden_layers": 1}, sliding_window=4))).eval(),
    ):
        encoder = LLMEncoderModel.from_decoder(source)
        assert encoder.config.sliding_window == 3
        ids = tokens(1, 12)
        expected = hidden_states(source.model, ids)[0, -1]
        torch.testing.assert_close(hidden_states(encoder, ids)[0, -1], expected, rtol=0, atol=1e-6)
        beyond, within = ids.clone(), ids.clone()
        beyond[0, -5] += 1
        within[0, -4] += 1
        torch.testing.assert_close(hidden_states(encoder, beyond)[0, -1], expected, rtol=0, atol=1e-6)
        assert not torch.allclose(hidden_states(encoder, within)[0, -1], expected, atol=1e-4)


def test_a_relative_bias_is_the_same_ahead_as_behind():
    encoder = LLMEncoderModel.from_decoder(decoder(position_embedding="relative_bias"))
    assert encoder.config.relative_attention_num_buckets == 64
    distance = torch.arange(9)[None] - torch.arange(9)[:, None]
    bias = encoder.position_bias(distance)[0]
    torch.testing.assert_close(bias, bias.transpose(1, 2), rtol=0, atol=0)
    assert len(bias[0].unique()) == 9


def test_a_checkpoint_of_ours_of_a_body_or_with_a_head(tmp_path):
    source = decoder(tie_word_embeddings=False)
    source.save_pretrained(tmp_path / "head")
    source.model.save_pretrained(tmp_path / "body")
    ids = tokens(2, 9)
    for name in ("head", "body"):
        encoder = LLMEncoderModel.from_decoder(tmp_path / name)
        assert hidden_states(encoder, ids, is_causal=True).equal(hidden_states(source.model, ids))
    assert LLMEncoderForMaskedLM.from_decoder(tmp_path / "head").lm_head.weight.equal(source.lm_head.weight)


def test_new_weights_are_named(caplog):
    LLMEncoderForMaskedLM.from_decoder(decoder())
    assert not caplog.records
    LLMEncoderForSequenceClassification.from_decoder(decoder(), num_labels=3)
    LLMEncoderForMaskedLM.from_decoder(decoder(tie_word_embeddings=False).model)
    LLMEncoderForMaskedLM.from_decoder(decoder().model)  # its head is its embedding
    names = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert names == ["score.weight, score.bias", "lm_head.weight"]


def test_the_decoder_stays_as_it_is():
    source = decoder()
    before = {name: weight.clone() for name, weight in source.state_dict().items()}
    encoder = LLMEncoderModel.from_decoder(source)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert all(weight.equal(before[name]) for name, weight in source.state_dict().items())
    assert source.config.sliding_window is None and isinstance(source.model, LLMDecoderModel)


def test_dtype_fields_and_mode():
    encoder = LLMEncoderModel.from_decoder(decoder().bfloat16().train(), attention_dropout=0.25)
    assert encoder.dtype == torch.bfloat16 and not encoder.training and encoder.config.attention_dropout == 0.25


def test_it_is_saved_and_opened_like_any_other(tmp_path):
    encoder = LLMEncoderForMaskedLM.from_decoder(decoder())
    encoder.save_pretrained(tmp_path)
    ids = tokens(2, 9)
    with torch.no_grad():
        assert LLMEncoderForMaskedLM.from_pretrained(tmp_path)(ids).logits.equal(encoder(ids).logits)


REFUSED = {
    "an encoder": (lambda: tiny_model("encoder"), "it is a model of type 'hf_llm_encoder', not a decoder"),
    "a native encoder": (
        lambda: BertModel(BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)),
        "it is a model of type 'hf_llm_encoder', not a decoder",
    ),
    "a decoder of an encoder-decoder": (
        lambda: tiny_model("encoder_decoder").model.decoder,
        "`add_cross_attention=True`: its cross-attention has no place there",
    ),
    "no model": (lambda: torch.nn.Linear(2, 2), "takes a model of transformers or a path, not Linear"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_move_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        LLMEncoderModel.from_decoder(make())


def test_sizes_do_not_change_on_the_way():
    message = r"up_proj.weight has the shape \(64, 32\), but .* of the decoder \(48, 32\)"
    with pytest.raises(ValueError, match=message):
        LLMEncoderModel.from_decoder(decoder(), intermediate_size=64)
    with pytest.raises(ValueError, match="LLMEncoderModel has no place for model.layers.1.self_attn"):
        LLMEncoderModel.from_decoder(decoder(), num_hidden_layers=1, layer_types=None)
