"""Command R: parallel branches behind one LayerNorm without bias, interleaved RoPE, scaled logits."""

from ..family import Family, Field, same
from ..parts import HEAD_DIM, LAYER_NORM_EPS, SIZES, TRAINING, one_if_unset, rope


COHERE = Family(
    name="cohere",
    stack="decoder",
    fields=(
        *SIZES,
        *TRAINING,
        *LAYER_NORM_EPS,
        *same("intermediate_size", "attention_bias"),
        one_if_unset("logit_scale", "logit_scale"),
        Field("use_qk_norm", ("qk_norm",), lambda on: "per_head" if on else None, lambda kind: kind is not None),
        HEAD_DIM,
        rope(),
    ),
    constants={"norm_type": "layernorm", "norm_placement": "parallel", "rope_interleaved": True},
    weights={"layers.{i}.self_attn_norm": "layers.{i}.input_layernorm"},
    heads={"ForCausalLM": {}},
)
FAMILIES = (COHERE,)
