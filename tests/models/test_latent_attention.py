"""Multi-head latent attention: what is cached, packed and planned, and what it refuses. Parity: tests/interop."""

import pytest
import torch

import hf_llm
from hf_llm.info import cache_bytes
from hf_llm.models.attention import Attention
from hf_llm.models.latent_attention import LatentAttention

from .tiny import logits_of, tiny_config, tiny_model, tokens


LATENT = {
    "attention_type": "latent",
    "qk_norm": None,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
}
VARIANTS = {
    "latent": LATENT,
    "dense query": {**LATENT, "q_lora_rank": None},
    "sliding": {**LATENT, "layer_types": "SL", "sliding_window": 4},
    "learned positions": {**LATENT, "position_embedding": "learned"},
    "biases": {**LATENT, "attention_bias": True, "rope_interleaved": True, "v_head_dim": None},
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_generation_with_a_cache_is_generation_without(fields):
    model = tiny_model("decoder", **fields)
    ids, settings = tokens(2, 7), {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids, use_cache=False, **settings)
    assert model.generate(ids, **settings).equal(expected)
    assert model.generate(ids, cache_implementation="static", **settings).equal(expected)


def test_the_cache_holds_the_latent_vector_and_the_rotated_key():
    model = tiny_model("decoder", **LATENT)
    layer = model(tokens(2, 7), use_cache=True).past_key_values.layers[0]
    assert (layer.keys.shape, layer.values.shape) == ((2, 1, 7, 8), (2, 1, 7, 4))
    held = layer.keys.numel() + layer.values.numel()
    assert cache_bytes(model.config, 7, width=1)["token"] == held * 2 // 14


@pytest.mark.parametrize("stack", ["decoder", "encoder"])
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_packed_documents_stay_apart(stack, fields):
    model = tiny_model(stack, **fields)
    first, second = tokens(1, 5, seed=1), tokens(1, 6, seed=2)
    documents = torch.tensor([[0] * 5 + [1] * 6])

    def second_of(first):
        return model(torch.cat((first, second), dim=1), document_ids=documents).logits[:, 5:]

    assert second_of(first).equal(second_of(tokens(1, 5, seed=3)))
    torch.testing.assert_close(second_of(first), model(second).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa"])
def test_every_backend_gives_the_same(attention):
    ids = tokens(2, 9)
    expected = logits_of(tiny_model("decoder", "eager", **LATENT), {"input_ids": ids})
    found = logits_of(tiny_model("decoder", attention, **LATENT), {"input_ids": ids})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_every_parameter_is_initialised_and_trained():
    model = hf_llm.LLMDecoderForCausalLM(tiny_config("decoder", residual_init="depth_scaled", **LATENT))
    attention = model.model.layers[0].self_attn
    assert isinstance(attention, LatentAttention) and attention.scaling == 10**-0.5
    assert attention.o_proj.weight.std() < 0.75 * attention.kv_b_proj.weight.std()
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_cross_attention_is_the_ordinary_one():
    model = tiny_model("encoder_decoder", **LATENT)
    assert type(model.model.decoder.layers[0].cross_attn) is Attention
    ids, settings = tokens(2, 7), {"max_new_tokens": 6, "do_sample": False}
    assert model.generate(ids, **settings).equal(model.generate(ids, use_cache=False, **settings))


def test_heads_are_split_and_the_latents_are_not():
    plan = tiny_config("decoder", **LATENT).base_model_tp_plan
    assert plan["layers.*.self_attn.q_b_proj"] == plan["layers.*.self_attn.kv_b_proj"] == "colwise"
    assert plan["layers.*.self_attn.o_proj"] == "rowwise" and "layers.*.self_attn.q_a_proj" not in plan


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kv_lora_rank": None}, "`kv_lora_rank=None`: `attention_type='latent'` needs it"),
        ({"qk_norm": "head"}, "`qk_norm='head'`: `attention_type='latent'` has norms of its own"),
        ({"v_head_dim": 0}, "`v_head_dim=0` must be at least 1"),
        ({"attention_type": "softmax"}, "`q_lora_rank=12` means nothing without `attention_type='latent'`"),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        tiny_config("decoder", **{**LATENT, **fields})


def test_continuous_batching_is_refused():
    with pytest.raises(ValueError, match="Continuous batching cannot honour `attention_type='latent'`"):
        tiny_model("decoder", **LATENT).init_continuous_batching()
