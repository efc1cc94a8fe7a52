"""ModernBERT: a pre-norm encoder with RoPE, windows and a gated feed-forward."""

from typing import Any

from ..family import Family, Field, Group, Rule, renamed, same
from ..ops import fused, halves
from ..parts import ROPE_BY_LAYER


def _window_to_ours(native) -> dict[str, Any]:
    slides = "sliding_attention" in native.layer_types
    return {
        "layer_types": list(native.layer_types),
        "sliding_window": native.local_attention // 2 if slides else None,  # to either side
    }


def _window_to_native(ours) -> dict[str, Any]:
    window = {} if ours.sliding_window is None else {"local_attention": 2 * ours.sliding_window}
    return {"layer_types": list(ours.layer_types)} | window


def _marks_to_native(ours) -> dict[str, Any]:
    return {"cls_token_id": ours.bos_token_id, "sep_token_id": ours.eos_token_id}


HEAD = {"transform.dense": "head.dense", "transform.norm": "head.norm", "score": "classifier"}

FAMILIES = (
    Family(
        name="modernbert",
        stack="encoder",
        fields=(
            *same("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *same("max_position_embeddings", "tie_word_embeddings", "initializer_range"),
            *same("norm_eps", "norm_bias", "attention_bias", "mlp_bias", "classifier_pooling"),
            *renamed(hidden_act="hidden_activation", lm_head_bias="decoder_bias"),
            Field("classifier_bias", ("head_transform_bias", "classifier_transform_bias")),
            Field("classifier_activation", ("head_transform_act", "classifier_activation")),
            Group(
                ("layer_types", "local_attention"),
                ("layer_types", "sliding_window"),
                _window_to_ours,
                _window_to_native,
            ),
            ROPE_BY_LAYER,
            Group(("cls_token_id", "sep_token_id"), (), lambda native: {}, _marks_to_native),
            *same("embedding_dropout", "classifier_dropout"),
            Field("attention_dropout", ("attention_dropout", "residual_dropout")),
            *renamed(activation_dropout="mlp_dropout"),
        ),
        constants={
            "norm_type": "layernorm",
            "embedding_norm": True,
            "first_layer_norm": False,
            "head_transform": True,
            "classifier_transform": True,
            "classifier_norm": True,
            "token_classifier_transform": True,
            "classifier_bias": True,
        },
        ignores=(
            "initializer_cutoff_factor",
            "deterministic_flash_attn",
            "sparse_prediction",  # logits at masked positions alone: the same loss
            "sparse_pred_ignore_index",
        ),
        weights={
            "embed_tokens": "embeddings.tok_embeddings",
            "embed_norm": "embeddings.norm",
            "layers.{i}.self_attn.o_proj": "layers.{i}.attn.Wo",
            "layers.{i}.self_attn_norm": "layers.{i}.attn_norm",
            "layers.{i}.mlp.down_proj": "layers.{i}.mlp.Wo",
            "norm": "final_norm",
        },
        rules=(
            Rule(
                ("layers.{i}.self_attn.q_proj", "layers.{i}.self_attn.k_proj", "layers.{i}.self_attn.v_proj"),
                ("layers.{i}.attn.Wqkv",),
                fused,
            ),
            Rule(("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"), ("layers.{i}.mlp.Wi",), halves),
        ),
        heads={
            "ForMaskedLM": {
                "head_transform.dense": "head.dense",
                "head_transform.norm": "head.norm",
                "lm_head": "decoder",
            },
            "ForSequenceClassification": HEAD,
            "ForTokenClassification": HEAD,
            "ForQuestionAnswering": HEAD,
            "ForMultipleChoice": HEAD,
        },
    ),
)
