"""StableLM: LayerNorm, RoPE on a part of the head, a norm for each head, parallel branches if wanted."""

from ..family import Rule, renamed
from ..ops import per_head
from ..parts import DENSE, HEADS, LAYER_NORM, llama_like, rope, switch


def _norms(letter: str, heads: str) -> Rule:
    native = f"layers.{{i}}.self_attn.{letter}_layernorm.norms.{{h}}.weight"
    return Rule((f"layers.{{i}}.self_attn.{letter}_norm.weight",), (native,), per_head(heads))


STABLELM = llama_like(
    "stablelm",
    *DENSE,
    *renamed(attention_bias="use_qkv_bias"),
    switch("qk_layernorm", "qk_norm", "per_head"),
    switch("use_parallel_residual", "norm_placement", "parallel", "pre"),
    rope(partial=True),
    norm_eps="layer_norm_eps",
    constants=LAYER_NORM | {"qk_norm_bias": False, "attention_output_bias": False},
    requires={"hidden_dropout": 0.0},  # only on the feed-forward's output, which the core has no field for
    rules=(_norms("q", "num_attention_heads"), _norms("k", "num_key_value_heads")),
    heads=HEADS,
)
