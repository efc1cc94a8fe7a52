"""Llama and its near relations: RMSNorm before each branch, RoPE, gated feed-forward."""

from ..family import Field, Group, same
from ..parts import (
    BIASES,
    DENSE,
    EXPERTS_EVERYWHERE,
    HEAD_DIM,
    WINDOW_BY_LAYER,
    WINDOW_EVERYWHERE,
    experts,
    inverse,
    llama_like,
    one_if_unset,
    rope,
)


COMMON = (HEAD_DIM, rope())

LLAMA = llama_like("llama", *COMMON, *DENSE, *BIASES, ignores=("pretraining_tp",))
MISTRAL = llama_like("mistral", *COMMON, *DENSE, WINDOW_EVERYWHERE)
MIXTRAL = llama_like(
    "mixtral",
    *COMMON,
    WINDOW_EVERYWHERE,
    *EXPERTS_EVERYWHERE,
    experts("num_local_experts"),
    *same("router_jitter_noise"),
)


def _reciprocal(value: float | None) -> float:
    return 1.0 if value is None else inverse(lambda number: 1 / number, value, 1 / value)


GRANITE = llama_like(
    "granite",
    *COMMON,
    *DENSE,
    *BIASES,
    one_if_unset("embedding_multiplier", "embedding_multiplier"),
    one_if_unset("residual_multiplier", "residual_multiplier"),
    Field("logits_scaling", ("logit_scale",), to_ours=lambda scaling: 1 / scaling, to_native=_reciprocal),
    Group(
        ("attention_multiplier",),
        ("attention_scale",),
        lambda native: {"attention_scale": native.attention_multiplier},
        lambda ours: {"attention_multiplier": ours.attention_scale or ours.head_dim**-0.5},
    ),
    heads={"ForCausalLM": {}},
)


def _smollm3_to_native(ours) -> dict:
    rotates = ours.rope_layers or [True] * ours.num_hidden_layers
    return {
        "no_rope_layers": [int(layer) for layer in rotates],  # 1: the layer has RoPE, whatever the name says
        "layer_types": list(ours.layer_types),
        "sliding_window": ours.sliding_window,
        "use_sliding_window": ours.sliding_window is not None,
    }


SMOLLM3 = llama_like(
    "smollm3",
    *COMMON,
    *DENSE,
    *BIASES,
    Group(
        ("no_rope_layers", "layer_types", "sliding_window", "use_sliding_window", "no_rope_layer_interval"),
        ("rope_layers", "layer_types", "sliding_window"),
        lambda native: {"rope_layers": list(map(bool, native.no_rope_layers)), **WINDOW_BY_LAYER.to_ours(native)},
        _smollm3_to_native,
    ),
)
