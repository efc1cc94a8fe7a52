"""Random configurations of the three stacks: what must hold for each of them, whatever was chosen.

The table below has bundles of fields that mean something together; a configuration draws one of each, the default in
half of the cases. Draws that the configuration refuses do not count.
"""

import contextlib
import functools
import itertools

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from .tiny import MODELS, SIZES, STACKS, alone, inputs_of, logits_of, packed_batch, redraw, target_documents


PER_STACK, GROUP = 72, 9  # 216 configurations, in groups that xdist can spread

ROPE = {"rope_theta": 10000.0}
CHOICES = {
    "norm": [{"norm_type": name} for name in ("rmsnorm_unit_offset", "layernorm_non_affine", "rmsnorm_non_affine")]
    + [{"norm_type": "layernorm", "norm_bias": bias} for bias in (True, False)],
    "placement": [{"norm_placement": name} for name in ("post", "sandwich", "branch")]
    + [{"norm_placement": "parallel", "parallel_norms": count} for count in (1, 2)],
    "embedding norm": [{"embedding_norm": True}, {"embedding_norm": True, "first_layer_norm": False}],
    "final norm": [{"final_norm": False}],
    "qk norm": [{"qk_norm": None}, {"qk_norm": "per_head"}, {"qk_norm": "full"}, {"qk_norm_bias": True}],
    "positions": [
        *({"position_embedding": name} for name in ("learned", "sinusoidal", "alibi", "relative_bias", "none")),
        {"position_embedding": "learned", "position_offset": 2, "position_ids_source": "attention_mask"},
        {"position_embedding": "learned", "position_offset": 2, "position_ids_source": "input_ids"},
        {"position_embedding": "relative_bias", "relative_attention_num_buckets": 6},
        {"position_embedding": "relative_bias", "relative_attention_bias_per_layer": True},
        {"position_embedding": "alibi", "alibi_scale": 0.5},
        {"rope_interleaved": True},
        {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}},
        {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "max_position_embeddings": 256,
        },
    ],
    "heads": [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 12},
        {"num_attention_heads": 6, "head_dim": 4},
    ],
    "attention biases": [{"attention_bias": True}, {"attention_bias": True, "attention_output_bias": False}],
    "scores": [
        {"attention_scale": 1.0},
        {"scale_attention_by_inverse_layer_idx": True},
        {"attn_logit_softcapping": 3.0},
        {"attention_sinks": True},
        {"attention_sinks": True, "attn_logit_softcapping": 3.0},
        {"clip_qkv": 1.0},
    ],
    "window": [
        {"layer_types": pattern, "sliding_window": window} for pattern in ("S", "SL", "LS") for window in (2, 3, 20)
    ],
    "feed-forward": [
        {"feed_forward": "plain", "hidden_act": "gelu"},
        {"feed_forward": "plain", "hidden_act": "relu2", "mlp_bias": True},
        {"hidden_act": "gelu_pytorch_tanh", "mlp_bias": True},
        {"swiglu_limit": 2.0, "swiglu_alpha": 1.7},
    ],
    "experts": [
        {"num_experts": 4},
        {"num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": False},
        {"num_experts": 3, "mlp_layer_types": "ED", "moe_intermediate_size": 16, "router_bias": True},
        {"num_experts": 4, "expert_bias": True, "shared_expert_intermediate_size": 24, "shared_expert_gate": True},
        {"num_experts": 4, "router_z_loss_coef": 0.01, "shared_expert_intermediate_size": 24},
    ],
    "embeddings": [
        {"tie_word_embeddings": False},
        {"embedding_multiplier": 5.5},
        {"embedding_size": 16, "embedding_projection": "tokens", "embedding_projection_bias": True},
        {"embedding_size": 16, "embedding_projection": "embeddings", "tie_word_embeddings": False},
    ],
    "head": [{"lm_head_bias": True}, {"logit_scale": 0.25}, {"final_logit_softcapping": 5.0}],
    "residual": [{"residual_multiplier": 0.5}, {"residual_from_norm": True}],
    "layers": [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"layer_sharing": [0, 0]}],
}
ENCODER_CHOICES = {
    "token types": [{"type_vocab_size": 2}],
    "transform": [{"head_transform": True}, {"head_transform": True, "head_transform_act": "gelu"}],
}


def draw(rng: np.random.Generator, choices: dict[str, list[dict]]) -> dict:
    """One bundle of each kind, in half of the cases none."""
    fields = dict(SIZES)
    for bundles in choices.values():
        if rng.random() < 0.5:
            fields |= bundles[rng.integers(len(bundles))]
    return fields


def draw_fields(stack: str, rng: np.random.Generator) -> dict:
    if stack == "decoder":
        return draw(rng, CHOICES)
    if stack == "encoder":
        return draw(rng, CHOICES | ENCODER_CHOICES)
    halves = {
        "encoder": draw(rng, CHOICES | {"token types": ENCODER_CHOICES["token types"]}),
        "decoder": draw(rng, CHOICES),
    }
    shared = {"share_embeddings": bool(rng.random() < 0.5), "tie_word_embeddings": bool(rng.random() < 0.5)}
    if not shared["share_embeddings"] and rng.random() < 0.5:
        halves["encoder"] |= {"hidden_size": 24, "vocab_size": 70}
    shared["tie_word_embeddings"] &= halves["decoder"].get("embedding_projection") != "embeddings"
    for half in halves.values():
        half.pop("tie_word_embeddings", None)
    return {**halves, **shared, "pad_token_id": 0, "decoder_start_token_id": 1}


@functools.cache
def configurations(stack: str) -> list:
    """Fields and configuration of `PER_STACK` legal draws, always the same."""
    legal = []
    for seed in itertools.count():
        fields = draw_fields(stack, np.random.default_rng([seed, STACKS.index(stack)]))
        with contextlib.suppress(StrictDataclassError, ValueError):
            legal.append((fields, MODELS[stack].config_class(**fields)))
        if len(legal) == PER_STACK:
            return legal


@pytest.mark.parametrize("first", range(0, PER_STACK, GROUP))
@pytest.mark.parametrize("stack", STACKS)
def test_random_configurations(stack, first, tmp_path):
    for n, (fields, config) in enumerate(configurations(stack)[first : first + GROUP], start=first):
        try:
            model = redraw(MODELS[stack](config)).eval()
            if stack != "encoder":
                check_cached_is_uncached(model, stack)
            check_packed_is_alone(model, stack)
            check_gradients(model, stack)
            check_saved_is_loaded(model, stack, tmp_path / str(n))
        except BaseException as error:
            error.add_note(f"configuration {n} of {stack}: {fields}")
            raise


def check_cached_is_uncached(model, stack: str):
    """A prompt, two tokens, then one by one."""
    inputs = inputs_of(stack)
    name = "input_ids" if stack == "decoder" else "decoder_input_ids"
    ids = inputs.pop(name)
    cut = [0, 4, 6, *range(7, ids.shape[1] + 1)]
    cache, steps = None, []
    with torch.no_grad():
        expected = model(**inputs, **{name: ids}, use_cache=False).logits
        for start, end in itertools.pairwise(cut):
            outputs = model(**inputs, **{name: ids[:, start:end]}, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-5)


def check_packed_is_alone(model, stack: str):
    batch = packed_batch(stack)
    logits, documents = logits_of(model, batch), target_documents(batch)
    for row in range(len(documents)):
        for document in range(int(documents[row].max()) + 1):
            expected = logits_of(model, alone(batch, row, document))[0]
            torch.testing.assert_close(logits[row, documents[row] == document], expected, rtol=1e-4, atol=1e-5)


def check_gradients(model, stack: str):
    """Every parameter gets one that is finite and not zero."""
    model.train()(**packed_batch(stack)).loss.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name
    model.eval().zero_grad()


def plain(config) -> dict:
    """A configuration without what loading adds to it."""
    fields = {**config.to_dict(), "_name_or_path": None}
    halves = {name: plain(getattr(config, name)) for name in config.sub_configs}
    return {**fields, **halves, "dtype": None}


def check_saved_is_loaded(model, stack: str, folder):
    model.save_pretrained(folder)
    loaded = MODELS[stack].from_pretrained(folder)
    assert plain(loaded.config) == plain(model.config)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    for parameter in loaded.parameters():  # products with weights that lie unaligned in the file round differently
        parameter.data = parameter.data.clone()
    logits = [logits_of(m, inputs_of(stack)) for m in (loaded, model)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
