"""Gemma 1 to 3 (text): RMSNorm applied as 1 + w, scaled embeddings, GeGLU; sandwich norms and windows from 2 on."""

from ..family import Group, same
from ..parts import DENSE, HEADS, WINDOW_BY_LAYER, layer, llama_like, off, rope


EMBEDDING_SCALE = Group(
    (), ("embedding_multiplier",), lambda native: {"embedding_multiplier": native.hidden_size**0.5}, lambda ours: {}
)
COMMON = (
    *DENSE,
    *same("head_dim", "attention_bias"),
    EMBEDDING_SCALE,
    off("use_bidirectional_attention", "this family is a decoder"),
)
CONSTANTS = {"norm_type": "rmsnorm_unit_offset"}


def _scale_to_native(ours) -> dict:
    scalar = ours.head_dim if ours.attention_scale is None else round(ours.attention_scale**-2)
    return {"query_pre_attn_scalar": scalar}


# from Gemma 2 on
LATER = (
    *COMMON,
    *same("final_logit_softcapping"),
    WINDOW_BY_LAYER,
    Group(
        ("query_pre_attn_scalar",),
        ("attention_scale",),
        lambda native: {"attention_scale": native.query_pre_attn_scalar**-0.5},
        _scale_to_native,
    ),
)
SANDWICH_NORMS = layer(
    "layers.{i}",
    self_attn_norm="input_layernorm",
    self_attn_output_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_output_norm="post_feedforward_layernorm",
)

GEMMA = llama_like("gemma", *COMMON, rope(), constants=CONSTANTS, heads=HEADS)
GEMMA2 = llama_like(
    "gemma2",
    *LATER,
    *same("attn_logit_softcapping"),
    rope(),
    hidden_act="hidden_activation",
    constants=CONSTANTS | {"norm_placement": "sandwich"},
    weights=SANDWICH_NORMS,
    heads=HEADS,
)
GEMMA3_TEXT = llama_like(
    "gemma3_text",
    *LATER,
    rope(by_layer=True),
    hidden_act="hidden_activation",
    constants=CONSTANTS | {"norm_placement": "sandwich", "qk_norm": "head"},
    ignores=("attn_logit_softcapping",),  # transformers' Gemma 3 does not read it
    weights=SANDWICH_NORMS,
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}},
)
