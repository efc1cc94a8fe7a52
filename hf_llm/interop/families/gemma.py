"""Gemma 1 to 3 (text): RMSNorm applied as 1 + w, scaled embeddings, GeGLU; sandwich norms and windows from 2 on."""

from typing import Any

from ..family import Family, Group, renamed, same
from ..parts import HEADS, PRE_NORMS, RMS_EPS, ROPE_BY_LAYER, SIZES, TRAINING, WINDOW_BY_LAYER, off, rope


EMBEDDING_SCALE = Group(
    native=(),
    ours=("embedding_multiplier",),
    to_ours=lambda native: {"embedding_multiplier": native.hidden_size**0.5},
    to_native=lambda ours: {},
)
BIDIRECTIONAL = off("use_bidirectional_attention", "this family is a decoder")
COMMON = (
    *(entry for entry in SIZES if entry.native != "hidden_act"),
    *same("intermediate_size", "head_dim", "attention_bias"),
    *RMS_EPS,
    *TRAINING,
    EMBEDDING_SCALE,
    BIDIRECTIONAL,
)
CONSTANTS = {"norm_type": "rmsnorm_unit_offset"}


def _scale_to_ours(native) -> dict[str, Any]:
    return {"attention_scale": native.query_pre_attn_scalar**-0.5}


def _scale_to_native(ours) -> dict[str, Any]:
    scalar = ours.head_dim if ours.attention_scale is None else round(ours.attention_scale**-2)
    return {"query_pre_attn_scalar": scalar}


# from Gemma 2 on
LATER = (
    *COMMON,
    *renamed(hidden_act="hidden_activation"),
    *same("final_logit_softcapping"),
    WINDOW_BY_LAYER,
    Group(("query_pre_attn_scalar",), ("attention_scale",), _scale_to_ours, _scale_to_native),
)
SANDWICH_NORMS = {
    "layers.{i}.self_attn_norm": "layers.{i}.input_layernorm",
    "layers.{i}.self_attn_output_norm": "layers.{i}.post_attention_layernorm",
    "layers.{i}.mlp_norm": "layers.{i}.pre_feedforward_layernorm",
    "layers.{i}.mlp_output_norm": "layers.{i}.post_feedforward_layernorm",
}

GEMMA = Family(
    name="gemma",
    stack="decoder",
    fields=(*COMMON, *same("hidden_act"), rope()),
    constants=CONSTANTS,
    weights=PRE_NORMS,
    heads=HEADS,
)
GEMMA2 = Family(
    name="gemma2",
    stack="decoder",
    fields=(*LATER, *same("attn_logit_softcapping"), rope()),
    constants=CONSTANTS | {"norm_placement": "sandwich"},
    weights=SANDWICH_NORMS,
    heads=HEADS,
)


GEMMA3_TEXT = Family(
    name="gemma3_text",
    stack="decoder",
    fields=(*LATER, ROPE_BY_LAYER),
    constants=CONSTANTS | {"norm_placement": "sandwich", "qk_norm": "head"},
    ignores=("attn_logit_softcapping",),  # transformers' Gemma 3 does not read it
    weights=SANDWICH_NORMS,
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}},
)
FAMILIES = (GEMMA, GEMMA2, GEMMA3_TEXT)
