"""OpenAI's GPT (2018) and GPT-2: learned positions, plain feed-forward, biases, Conv1D weights (in, out)."""

from ..family import Family, Field, Rule, renamed, same
from ..ops import fused_transposed, transpose


FIELDS = (
    *same("vocab_size", "tie_word_embeddings", "initializer_range"),
    *renamed(
        hidden_size="n_embd",
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        max_position_embeddings="n_positions",
        norm_eps="layer_norm_epsilon",
        residual_dropout="resid_pdrop",
        embedding_dropout="embd_pdrop",
        attention_dropout="attn_pdrop",
    ),
)
CONSTANTS = {
    "norm_type": "layernorm",
    "norm_bias": True,
    "position_embedding": "learned",
    "attention_bias": True,
    "feed_forward": "plain",
    "mlp_bias": True,
}
RULES = (
    Rule(
        ("layers.{i}.self_attn.q_proj", "layers.{i}.self_attn.k_proj", "layers.{i}.self_attn.v_proj"),
        ("h.{i}.attn.c_attn",),
        fused_transposed,
    ),
    Rule(("layers.{i}.self_attn.o_proj",), ("h.{i}.attn.c_proj",), transpose),
    Rule(("layers.{i}.mlp.up_proj",), ("h.{i}.mlp.c_fc",), transpose),
    Rule(("layers.{i}.mlp.down_proj",), ("h.{i}.mlp.c_proj",), transpose),
)
NORMS = {"layers.{i}.self_attn_norm": "h.{i}.ln_1", "layers.{i}.mlp_norm": "h.{i}.ln_2"}
HEADS = {
    "ForCausalLM": {},
    "ForSequenceClassification": {},
    "ForTokenClassification": {"score": "classifier"},
    "ForQuestionAnswering": {"score": "qa_outputs"},
}
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
    constants={**CONSTANTS, "norm_placement": "post", "final_norm": False},
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
        Field(
            "scale_attn_weights",
            ("attention_scale",),
            lambda scaled: None if scaled else 1.0,
            lambda scale: scale is None,
        ),
    ),
    constants=CONSTANTS,
    requires={"add_cross_attention": False},
    ignores=("reorder_and_upcast_attn", *SUMMARY_HEAD),
    legacy=lambda native: {"n_ctx": native.n_positions},
    weights={"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f", **NORMS},
    rules=RULES,
    heads=HEADS,
)
FAMILIES = (OPENAI_GPT, GPT2)
