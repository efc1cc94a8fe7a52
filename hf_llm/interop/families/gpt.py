"""OpenAI's GPT (2018) and GPT-2: learned positions, plain feed-forward, biases, Conv1D weights (in, out)."""

from ..family import Family, Field, Rule, renamed, same
from ..ops import fused_transposed, transpose
from ..parts import GPT_HEADS, LAYER_NORM, LEARNED, N_DROPOUTS, N_SIZES, PLAIN, POST_NORM, layer, qkv, switch


FIELDS = (
    *same("vocab_size", "tie_word_embeddings", "initializer_range"),
    *renamed(max_position_embeddings="n_positions", norm_eps="layer_norm_epsilon"),
    *N_SIZES,
    *N_DROPOUTS,
)
CONSTANTS = LAYER_NORM | PLAIN | LEARNED | {"attention_bias": True}
RULES = (
    qkv("h.{i}.attn.c_attn", fused_transposed),
    Rule(("layers.{i}.self_attn.o_proj",), ("h.{i}.attn.c_proj",), transpose),
    Rule(("layers.{i}.mlp.up_proj",), ("h.{i}.mlp.c_fc",), transpose),
    Rule(("layers.{i}.mlp.down_proj",), ("h.{i}.mlp.c_proj",), transpose),
)
NORMS = layer("h.{i}", self_attn_norm="ln_1", mlp_norm="ln_2")
SUMMARY_HEAD = tuple(
    f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
)
# The 2018 code has its own table of activations, in which "gelu" is the tanh approximation.
OPENAI_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}

OPENAI_GPT = Family(
    name="openai-gpt",
    stack="decoder",
    fields=(
        *FIELDS,
        Field(
            "afn",
            ("hidden_act",),
            OPENAI_ACTIVATIONS.__getitem__,
            lambda name: name if name in ("relu", "silu") else "gelu",
        ),
    ),
    constants=CONSTANTS | POST_NORM,
    ignores=SUMMARY_HEAD,
    weights={"embed_tokens": "tokens_embed", "embed_positions": "positions_embed", **NORMS},
    rules=RULES,
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}},
)
GPT2 = Family(
    name="gpt2",
    stack="decoder",
    fields=(
        *FIELDS,
        *same("use_cache"),
        *renamed(
            hidden_act="activation_function",
            intermediate_size="n_inner",
            scale_attention_by_inverse_layer_idx="scale_attn_by_inverse_layer_idx",
        ),
        switch("scale_attn_weights", "attention_scale", None, 1.0),
    ),
    constants=CONSTANTS,
    requires={"add_cross_attention": False},
    ignores=("reorder_and_upcast_attn", *SUMMARY_HEAD),
    legacy=lambda native: {"n_ctx": native.n_positions},
    weights={"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f", **NORMS},
    rules=RULES,
    heads=GPT_HEADS,
)
