"""gpt-oss: attention sinks, alternating windows, YaRN, and biased experts behind a clamped gate."""

from ..family import Rule, same
from ..ops import interleaved_halves, transpose
from ..parts import EXPERTS_EVERYWHERE, HEADS, PRE_NORMS, WINDOW_BY_LAYER, experts, llama_like, rope


EXPERTS = "layers.{i}.mlp.experts."

GPT_OSS = llama_like(
    "gpt_oss",
    *EXPERTS_EVERYWHERE,
    *same("head_dim", "attention_bias", "swiglu_limit", "swiglu_alpha"),
    experts("num_local_experts"),
    WINDOW_BY_LAYER,
    rope(),
    hidden_act=None,
    constants={"attention_sinks": True, "router_bias": True, "expert_bias": True},
    ignores=("hidden_act",),  # the gate is fixed
    weights=PRE_NORMS | {"layers.{i}.mlp.gate": "layers.{i}.mlp.router"},
    rules=(
        Rule((EXPERTS + "gate_up_proj",), (EXPERTS + "gate_up_proj",), interleaved_halves),
        Rule((EXPERTS + "gate_up_proj_bias",), (EXPERTS + "gate_up_proj_bias",), interleaved_halves),
        Rule((EXPERTS + "down_proj",), (EXPERTS + "down_proj",), transpose),
    ),
    heads=HEADS,
)
