"""Phi 1 and 2 (parallel branches, LayerNorm, biases everywhere) and Phi 3 (Llama with fused projections)."""

from ..family import Group, Rule, renamed
from ..ops import fused, halves
from ..parts import (
    DENSE,
    HEAD_DIM,
    HEADS,
    LAYER_NORM,
    PLAIN,
    WINDOW_EVERYWHERE,
    layer,
    llama_like,
    qkv,
    rope,
    switch,
)


COMMON = (HEAD_DIM, *DENSE, *renamed(residual_dropout="resid_pdrop"))
ROPE = rope(partial=True)

PHI = llama_like(
    "phi",
    *COMMON,
    *renamed(embedding_dropout="embd_pdrop"),
    switch("qk_layernorm", "qk_norm", "head"),
    ROPE,
    norm_eps="layer_norm_eps",
    constants=LAYER_NORM | PLAIN | {"norm_placement": "parallel", "attention_bias": True, "lm_head_bias": True},
    weights={
        **layer("layers.{i}", self_attn_norm="input_layernorm", o_proj="self_attn.dense"),
        **layer("layers.{i}.self_attn", q_norm="q_layernorm", k_norm="k_layernorm"),
        **layer("layers.{i}.mlp", up_proj="fc1", down_proj="fc2"),
        "norm": "final_layernorm",
    },
    heads=HEADS,
)


def _phi3_rope_to_native(ours) -> dict:
    values = ROPE.to_native(ours)
    original = values["rope_parameters"].get("original_max_position_embeddings")
    return values if original is None else values | {"original_max_position_embeddings": original}


PHI3 = llama_like(
    "phi3",
    *COMMON,
    WINDOW_EVERYWHERE,
    Group(
        ("rope_parameters", "original_max_position_embeddings"),
        ("rope_parameters",),
        ROPE.to_ours,
        _phi3_rope_to_native,
    ),
    ignores=("embd_pdrop",),  # transformers' Phi 3 does not read it
    rules=(
        qkv("layers.{i}.self_attn.qkv_proj", fused),
        Rule(("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"), ("layers.{i}.mlp.gate_up_proj",), halves),
    ),
    heads=HEADS,
)
