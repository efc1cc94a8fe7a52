"""Llama and its near relations: RMSNorm before each branch, RoPE, gated feed-forward."""

import math
from typing import Any

from ..family import Family, Field, Group, same
from ..parts import (
    EXPERTS_EVERYWHERE,
    HEAD_DIM,
    HEADS_WITH_QA,
    PRE_NORMS,
    RMS_EPS,
    SIZES,
    TRAINING,
    WINDOW_EVERYWHERE,
    experts,
    one_if_unset,
    rope,
)


COMMON = (*SIZES, *RMS_EPS, *TRAINING, HEAD_DIM, rope())
DENSE = same("intermediate_size")

LLAMA = Family(
    name="llama",
    stack="decoder",
    fields=(*COMMON, *DENSE, *same("attention_bias", "mlp_bias")),
    ignores=("pretraining_tp",),
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)
MISTRAL = Family(
    name="mistral",
    stack="decoder",
    fields=(*COMMON, *DENSE, WINDOW_EVERYWHERE),
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)
MIXTRAL = Family(
    name="mixtral",
    stack="decoder",
    fields=(
        *COMMON,
        WINDOW_EVERYWHERE,
        *EXPERTS_EVERYWHERE,
        experts("num_local_experts"),
        *same("router_jitter_noise"),
    ),
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)


def _reciprocal(value: float | None) -> float:
    """The number whose reciprocal is `value` to the bit, where there is one; of several the one written shortest."""
    if value is None:
        return 1.0
    guess = 1 / value
    near = (guess, math.nextafter(guess, 0), math.nextafter(guess, math.inf))
    return min((number for number in near if 1 / number == value), key=lambda n: len(repr(n)), default=guess)


GRANITE = Family(
    name="granite",
    stack="decoder",
    fields=(
        *COMMON,
        *DENSE,
        *same("attention_bias", "mlp_bias"),
        one_if_unset("embedding_multiplier", "embedding_multiplier"),
        one_if_unset("residual_multiplier", "residual_multiplier"),
        Field("logits_scaling", ("logit_scale",), to_ours=lambda scaling: 1 / scaling, to_native=_reciprocal),
        Group(
            native=("attention_multiplier",),
            ours=("attention_scale",),
            to_ours=lambda native: {"attention_scale": native.attention_multiplier},
            to_native=lambda ours: {"attention_multiplier": ours.attention_scale or ours.head_dim**-0.5},
        ),
    ),
    weights=PRE_NORMS,
    heads={"ForCausalLM": {}},
)


def _smollm3_to_ours(native) -> dict[str, Any]:
    slides = "sliding_attention" in native.layer_types
    return {
        "rope_layers": [bool(rotates) for rotates in native.no_rope_layers],
        "layer_types": list(native.layer_types),
        "sliding_window": native.sliding_window if slides else None,
    }


def _smollm3_to_native(ours) -> dict[str, Any]:
    rotates = ours.rope_layers or [True] * ours.num_hidden_layers
    return {
        "no_rope_layers": [int(layer) for layer in rotates],  # 1: the layer has RoPE, whatever the name says
        "layer_types": list(ours.layer_types),
        "sliding_window": ours.sliding_window,
        "use_sliding_window": ours.sliding_window is not None,
    }


SMOLLM3 = Family(
    name="smollm3",
    stack="decoder",
    fields=(
        *COMMON,
        *DENSE,
        *same("attention_bias", "mlp_bias"),
        Group(
            native=("no_rope_layers", "layer_types", "sliding_window", "use_sliding_window", "no_rope_layer_interval"),
            ours=("rope_layers", "layer_types", "sliding_window"),
            to_ours=_smollm3_to_ours,
            to_native=_smollm3_to_native,
        ),
    ),
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)
FAMILIES = (LLAMA, MISTRAL, MIXTRAL, GRANITE, SMOLLM3)
