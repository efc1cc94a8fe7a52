"""StarCoder 2: LayerNorm, RoPE, a plain feed-forward, biases everywhere or nowhere."""

from ..family import Field, same
from ..parts import DENSE, HEAD_DIM, HEADS, LAYER_NORM, PRE_NORMS, WINDOW_EVERYWHERE, layer, llama_like, rope


STARCODER2 = llama_like(
    "starcoder2",
    *DENSE,
    *same("residual_dropout", "embedding_dropout"),
    Field("use_bias", ("attention_bias", "mlp_bias")),
    HEAD_DIM,
    WINDOW_EVERYWHERE,
    rope(),
    norm_eps="norm_epsilon",
    constants=LAYER_NORM | {"feed_forward": "plain"},
    weights=PRE_NORMS | layer("layers.{i}", up_proj="mlp.c_fc", down_proj="mlp.c_proj"),
    heads=HEADS,
)
