"""StableLM: LayerNorm, RoPE on a part of the head, a norm for each head, parallel branches if wanted."""

from ..family import Family, Field, Rule, renamed, same
from ..ops import PerHead
from ..parts import HEADS, LAYER_NORM_EPS, PRE_NORMS, SIZES, TRAINING, rope


STABLELM = Family(
    name="stablelm",
    stack="decoder",
    fields=(
        *SIZES,
        *TRAINING,
        *LAYER_NORM_EPS,
        *same("intermediate_size"),
        *renamed(attention_bias="use_qkv_bias"),
        Field("qk_layernorm", ("qk_norm",), lambda on: "per_head" if on else None, lambda kind: kind is not None),
        Field(
            "use_parallel_residual",
            ("norm_placement",),
            lambda parallel: "parallel" if parallel else "pre",
            lambda placement: placement == "parallel",
        ),
        rope(partial=True),
    ),
    constants={"norm_type": "layernorm", "norm_bias": True, "qk_norm_bias": False, "attention_output_bias": False},
    requires={"hidden_dropout": 0.0},  # only on the feed-forward's output, which the core has no field for
    weights=PRE_NORMS,
    rules=(
        Rule(
            ours=("layers.{i}.self_attn.q_norm.weight",),
            native=("layers.{i}.self_attn.q_layernorm.norms.{h}.weight",),
            op=PerHead("num_attention_heads"),
        ),
        Rule(
            ours=("layers.{i}.self_attn.k_norm.weight",),
            native=("layers.{i}.self_attn.k_layernorm.norms.{h}.weight",),
            op=PerHead("num_key_value_heads"),
        ),
    ),
    heads=HEADS,
)
FAMILIES = (STABLELM,)
