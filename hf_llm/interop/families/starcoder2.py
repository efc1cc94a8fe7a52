"""StarCoder 2: LayerNorm, RoPE, a plain feed-forward, biases everywhere or nowhere."""

from ..family import Family, Field, renamed, same
from ..parts import HEAD_DIM, HEADS, PRE_NORMS, SIZES, TRAINING, WINDOW_EVERYWHERE, rope


STARCODER2 = Family(
    name="starcoder2",
    stack="decoder",
    fields=(
        *SIZES,
        *TRAINING,
        *same("intermediate_size", "residual_dropout", "embedding_dropout"),
        *renamed(norm_eps="norm_epsilon"),
        Field("use_bias", ("attention_bias", "mlp_bias")),
        HEAD_DIM,
        WINDOW_EVERYWHERE,
        rope(),
    ),
    constants={"norm_type": "layernorm", "norm_bias": True, "feed_forward": "plain"},
    weights=PRE_NORMS
    | {"layers.{i}.mlp.up_proj": "layers.{i}.mlp.c_fc", "layers.{i}.mlp.down_proj": "layers.{i}.mlp.c_proj"},
    heads=HEADS,
)
FAMILIES = (STARCODER2,)
