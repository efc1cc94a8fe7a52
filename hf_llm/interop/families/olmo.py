"""OLMo: norms without weights (1), norms on the branches' outputs and on queries and keys (2), experts (OLMoE)."""

from ..family import same
from ..parts import DENSE, EXPERTS_EVERYWHERE, HEAD_DIM, experts, layer, llama_like, rope


COMMON = (*same("attention_bias"), rope())
HEADS = {"ForCausalLM": {}, "ForSequenceClassification": {}}

OLMO = llama_like(
    "olmo",
    *COMMON,
    HEAD_DIM,
    *DENSE,
    *same("clip_qkv"),
    norm_eps=None,
    constants={"norm_type": "layernorm_non_affine", "norm_eps": 1e-5},
    weights={},
    heads=HEADS,
)
OLMO2 = llama_like(
    "olmo2",
    *COMMON,
    HEAD_DIM,
    *DENSE,
    constants={"norm_placement": "branch", "qk_norm": "full"},
    weights=layer("layers.{i}", self_attn_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    heads=HEADS,
)
OLMOE = llama_like(
    "olmoe",
    *COMMON,
    *EXPERTS_EVERYWHERE,
    experts(),
    *same("norm_topk_prob", "clip_qkv"),
    constants={"qk_norm": "full"},
    heads={"ForCausalLM": {}},
)
