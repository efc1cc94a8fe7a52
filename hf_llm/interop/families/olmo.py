"""OLMo: norms without weights (1), norms on the branches' outputs and on queries and keys (2), experts (OLMoE)."""

from ..family import Family, same
from ..parts import EXPERTS_EVERYWHERE, HEAD_DIM, PRE_NORMS, RMS_EPS, SIZES, TRAINING, experts, rope


COMMON = (*SIZES, *TRAINING, *same("attention_bias"), rope())
HEADS = {"ForCausalLM": {}, "ForSequenceClassification": {}}

OLMO = Family(
    name="olmo",
    stack="decoder",
    fields=(*COMMON, HEAD_DIM, *same("intermediate_size", "clip_qkv")),
    constants={"norm_type": "layernorm_non_affine", "norm_eps": 1e-5},
    heads=HEADS,
)
OLMO2 = Family(
    name="olmo2",
    stack="decoder",
    fields=(*COMMON, HEAD_DIM, *RMS_EPS, *same("intermediate_size")),
    constants={"norm_placement": "branch", "qk_norm": "full"},
    weights={
        "layers.{i}.self_attn_norm": "layers.{i}.post_attention_layernorm",
        "layers.{i}.mlp_norm": "layers.{i}.post_feedforward_layernorm",
    },
    heads=HEADS,
)
OLMOE = Family(
    name="olmoe",
    stack="decoder",
    fields=(*COMMON, *RMS_EPS, *EXPERTS_EVERYWHERE, experts(), *same("norm_topk_prob", "clip_qkv")),
    constants={"qk_norm": "full"},
    weights=PRE_NORMS,
    heads={"ForCausalLM": {}},
)
FAMILIES = (OLMO, OLMO2, OLMOE)
