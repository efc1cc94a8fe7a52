"""Command R: parallel branches behind one LayerNorm without bias, interleaved RoPE, scaled logits."""

from ..family import same
from ..parts import DENSE, HEAD_DIM, layer, llama_like, one_if_unset, rope, switch


COHERE = llama_like(
    "cohere",
    *DENSE,
    *same("attention_bias"),
    one_if_unset("logit_scale", "logit_scale"),
    switch("use_qk_norm", "qk_norm", "per_head"),
    HEAD_DIM,
    rope(),
    norm_eps="layer_norm_eps",
    constants={"norm_type": "layernorm", "norm_placement": "parallel", "rope_interleaved": True},
    weights=layer("layers.{i}", self_attn_norm="input_layernorm"),
    heads={"ForCausalLM": {}},
)
