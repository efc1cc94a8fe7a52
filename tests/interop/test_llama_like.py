"""What the tables of Llama's relations refuse, carry along, and write for other readers."""

import copy

import pytest
import torch
import transformers

import hf_llm
from hf_llm.interop import InteropError
from hf_llm.interop.configurations import to_native_config, to_our_config

from . import parity
from .cases_llama_like import FULL, LINEAR, LLAMA_LIKE, SLIDING, SMALL


def native_config(family, **switches):
    base = {name: value for name, value in LLAMA_LIKE[family][0].items() if name != "attention"}
    return transformers.CONFIG_MAPPING[family](**{**base, **switches})


def our_config(family, **switches):
    return to_our_config(parity.FAMILIES[family], native_config(family, **switches))


def exported(family, **fields):
    """The native configuration of our configuration of the family's base case, with some fields of ours changed."""
    ours = our_config(family).to_dict() | fields
    return to_native_config(parity.FAMILIES[family], hf_llm.LLMDecoderConfig.from_dict(ours))


@pytest.mark.parametrize(
    ("family", "switches", "named"),
    [
        ("llama", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor=0.5`: it rotates the whole head"),
        ("gemma", {"use_bidirectional_attention": True}, "`use_bidirectional_attention=True` is not supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "`use_bidirectional_attention=True` is not supported"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "`use_bidirectional_attention=True` is not supported"),
        ("stablelm", {"hidden_dropout": 0.1}, "`hidden_dropout=0.1`: only 0.0 is supported"),
        ("qwen2_moe", {"layer_types": [SLIDING] * 4}, "`sliding_window=0` must be at least 1"),
    ],
)
def test_native_switches_without_a_place_are_refused(family, switches, named):
    with pytest.raises(InteropError, match=named):
        our_config(family, **switches)


@pytest.mark.parametrize(
    ("family", "fields", "named"),
    [
        ("llama", {"rope_parameters": {FULL: LINEAR}}, "`rope_parameters` differ by layer type"),
        ("llama", {"attention_output_bias": True}, "attention_output_bias=True"),
        ("mistral", {"sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING]}, "layer_types"),
        ("gemma2", {"attention_scale": 0.3}, "attention_scale=0.3"),
        ("gemma2", {"embedding_multiplier": None}, "embedding_multiplier=1.0"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping=30.0"),
        ("olmo", {"norm_eps": 1e-6}, "norm_eps=1e-06"),
        ("olmoe", {"head_dim": 16}, "head_dim=16"),
        ("phi3", {"attention_bias": True}, "attention_bias=True"),
        ("gpt_oss", {"router_bias": False}, "router_bias=False"),
    ],
)
def test_fields_of_ours_without_a_place_are_refused(family, fields, named):
    with pytest.raises(InteropError, match=named):
        exported(family, **fields)


@pytest.mark.parametrize(
    ("family", "switches", "fields"),
    [
        ("llama", {"attention_dropout": 0.1, "initializer_range": 0.03, "use_cache": False}, None),
        ("llama", {"attention_dropout": None}, {"attention_dropout": 0.0}),
        ("mixtral", {"router_jitter_noise": 0.1, "router_aux_loss_coef": 0.2, "output_router_logits": True}, None),
        ("phi", {"resid_pdrop": 0.1, "embd_pdrop": 0.2}, {"residual_dropout": 0.1, "embedding_dropout": 0.2}),
        ("phi3", {"resid_pdrop": 0.1}, {"residual_dropout": 0.1}),
        ("starcoder2", {"residual_dropout": 0.1, "embedding_dropout": 0.2}, None),
    ],
)
def test_what_matters_to_training_is_carried(family, switches, fields):
    ours = our_config(family, **switches)
    for name, value in (fields or switches).items():
        assert getattr(ours, name) == value
    back = to_native_config(parity.FAMILIES[family], ours)
    for name, value in switches.items():
        assert getattr(back, name) == (0.0 if value is None else value)


def test_special_tokens_are_those_of_the_model_and_not_of_the_family():
    assert exported("gemma", pad_token_id=None, bos_token_id=None, eos_token_id=[2, 3]).eos_token_id == [2, 3]
    assert exported("gemma", pad_token_id=None, bos_token_id=None).bos_token_id is None


def test_windows_are_written_for_readers_that_know_no_layer_types():
    assert exported("qwen3", sliding_window=4, layer_types=[FULL, SLIDING, SLIDING]).max_window_layers == 1


def test_an_undeclared_head_dim_is_written_only_where_it_is_needed():
    assert not hasattr(exported("qwen2"), "head_dim")
    assert exported("qwen2", head_dim=16).head_dim == 16


@pytest.mark.parametrize("scaling", [3.0, 6.0, 7.0, 13.0, 16.0, 49.0, 8.7])
def test_reciprocals_come_back(scaling):
    ours = our_config("granite", logits_scaling=scaling)
    assert to_native_config(parity.FAMILIES["granite"], ours).logits_scaling == scaling


def test_every_vector_of_a_factor_list_comes_back():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
    ours = our_config("phi3", rope_parameters=rope, original_max_position_embeddings=8)
    assert ours.longrope_limit == 8
    back = to_native_config(parity.FAMILIES["phi3"], ours)
    assert (back.original_max_position_embeddings, back.rope_parameters["long_factor"]) == (8, [2.0] * 4)


def test_configurations_share_nothing():
    native = native_config("llama")
    ours = to_our_config(parity.FAMILIES["llama"], native)
    ours.rope_parameters["rope_theta"] = 7.0
    assert native.rope_parameters["rope_theta"] != 7.0


def test_a_quantised_model_is_refused():
    native = parity.native_model("llama", **SMALL)
    native.config.quantization_config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(InteropError, match="LlamaForCausalLM is quantised"):
        hf_llm.from_native(native)


@torch.no_grad()
def test_latent_attention_in_bfloat16():
    """No further from float32 than twice the native class's own distance."""
    native = parity.native_model("minicpm3", **LLAMA_LIKE["minicpm3"][0])
    ids, ours = parity.inputs(), parity.imported(native)
    exact = native(ids).logits
    theirs, found = (copy.deepcopy(model).bfloat16()(ids).logits.float() - exact for model in (native, ours))
    assert found.abs().mean() <= 2 * theirs.abs().mean()
