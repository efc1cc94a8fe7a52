"""Phi 1 and 2 (parallel branches, LayerNorm, biases everywhere) and Phi 3 (Llama with fused projections)."""

from typing import Any

from ..family import Family, Field, Group, Rule, renamed, same
from ..ops import fused, halves
from ..parts import (
    HEAD_DIM,
    HEADS,
    LAYER_NORM_EPS,
    PRE_NORMS,
    RMS_EPS,
    SIZES,
    TRAINING,
    WINDOW_EVERYWHERE,
    rope,
)


COMMON = (*SIZES, *TRAINING, HEAD_DIM, *same("intermediate_size"), *renamed(residual_dropout="resid_pdrop"))

PHI = Family(
    name="phi",
    stack="decoder",
    fields=(
        *COMMON,
        *LAYER_NORM_EPS,
        *renamed(embedding_dropout="embd_pdrop"),
        Field("qk_layernorm", ("qk_norm",), lambda on: "head" if on else None, lambda kind: kind is not None),
        rope(partial=True),
    ),
    constants={
        "norm_type": "layernorm",
        "norm_bias": True,
        "norm_placement": "parallel",
        "attention_bias": True,
        "feed_forward": "plain",
        "mlp_bias": True,
        "lm_head_bias": True,
    },
    weights={
        "layers.{i}.self_attn_norm": "layers.{i}.input_layernorm",
        "layers.{i}.self_attn.o_proj": "layers.{i}.self_attn.dense",
        "layers.{i}.self_attn.q_norm": "layers.{i}.self_attn.q_layernorm",
        "layers.{i}.self_attn.k_norm": "layers.{i}.self_attn.k_layernorm",
        "layers.{i}.mlp.up_proj": "layers.{i}.mlp.fc1",
        "layers.{i}.mlp.down_proj": "layers.{i}.mlp.fc2",
        "norm": "final_layernorm",
    },
    heads=HEADS,
)

ROPE = rope(partial=True)


def _phi3_rope_to_native(ours) -> dict[str, Any]:
    values = ROPE.to_native(ours)
    original = values["rope_parameters"].get("original_max_position_embeddings")
    return values if original is None else values | {"original_max_position_embeddings": original}


PHI3 = Family(
    name="phi3",
    stack="decoder",
    fields=(
        *COMMON,
        *RMS_EPS,
        WINDOW_EVERYWHERE,
        Group(
            native=("rope_parameters", "original_max_position_embeddings"),
            ours=("rope_parameters",),
            to_ours=ROPE.to_ours,
            to_native=_phi3_rope_to_native,
        ),
    ),
    ignores=("embd_pdrop",),  # transformers' Phi 3 does not read it
    weights=PRE_NORMS,
    rules=(
        Rule(
            ours=tuple(f"layers.{{i}}.self_attn.{name}_proj.weight" for name in "qkv"),
            native=("layers.{i}.self_attn.qkv_proj.weight",),
            op=fused,
        ),
        Rule(
            ours=("layers.{i}.mlp.gate_proj.weight", "layers.{i}.mlp.up_proj.weight"),
            native=("layers.{i}.mlp.gate_up_proj.weight",),
            op=halves,
        ),
    ),
    heads=HEADS,
)
FAMILIES = (PHI, PHI3)
