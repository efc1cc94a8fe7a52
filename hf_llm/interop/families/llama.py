"""Llama and its near relations: RMSNorm, RoPE, gated feed-forward."""

from ..family import Family, renamed, same


SIZES = same(
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "hidden_act",
    "tie_word_embeddings",
)
ROPE = same("rope_parameters", "head_dim")
WEIGHTS = {
    "layers.{i}.self_attn_norm": "layers.{i}.input_layernorm",
    "layers.{i}.mlp_norm": "layers.{i}.post_attention_layernorm",
}
HEADS = {
    "ForCausalLM": {},
    "ForSequenceClassification": {},
    "ForTokenClassification": {},
    "ForQuestionAnswering": {"score": "qa_outputs"},
}

LLAMA = Family(
    name="llama",
    stack="decoder",
    fields=(*SIZES, *ROPE, *renamed(norm_eps="rms_norm_eps"), *same("attention_bias", "mlp_bias")),
    weights=WEIGHTS,
    heads=HEADS,
    ignores=("pretraining_tp", "attention_dropout", "initializer_range", "use_cache"),
)
FAMILIES = (LLAMA,)
