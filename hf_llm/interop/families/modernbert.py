"""ModernBERT: a pre-norm encoder with RoPE, windows and a gated feed-forward."""

from ..family import Family, Field, Group, Rule, renamed, same
from ..ops import fused, halves
from ..parts import DENSE, SIZES, layer, qkv, rope


def _window_to_ours(native) -> dict:
    window = native.local_attention // 2 if "sliding_attention" in native.layer_types else None  # to either side
    return {"layer_types": list(native.layer_types), "sliding_window": window}


def _window_to_native(ours) -> dict:
    window = {} if ours.sliding_window is None else {"local_attention": 2 * ours.sliding_window}
    return {"layer_types": list(ours.layer_types)} | window


TRANSFORM = ("head_transform", "classifier_transform", "classifier_norm", "token_classifier_transform")
HEAD = {"transform.dense": "head.dense", "transform.norm": "head.norm", "score": "classifier"}

MODERNBERT = Family(
    name="modernbert",
    stack="encoder",
    fields=(
        *SIZES,
        *DENSE,
        *same("max_position_embeddings", "initializer_range", "embedding_dropout", "classifier_dropout"),
        *same("norm_eps", "norm_bias", "attention_bias", "mlp_bias", "classifier_pooling"),
        *renamed(hidden_act="hidden_activation", lm_head_bias="decoder_bias", activation_dropout="mlp_dropout"),
        Field("classifier_bias", ("head_transform_bias", "classifier_transform_bias")),
        Field("classifier_activation", ("head_transform_act", "classifier_activation")),
        Field("attention_dropout", ("attention_dropout", "residual_dropout")),
        Group(
            ("layer_types", "local_attention"),
            ("layer_types", "sliding_window"),
            _window_to_ours,
            _window_to_native,
        ),
        rope(by_layer=True),
        Group(
            ("cls_token_id", "sep_token_id"),
            (),
            lambda native: {},
            lambda ours: {"cls_token_id": ours.bos_token_id, "sep_token_id": ours.eos_token_id},
        ),
    ),
    constants=dict.fromkeys(TRANSFORM, True)
    | {"norm_type": "layernorm", "embedding_norm": True, "first_layer_norm": False, "classifier_bias": True},
    ignores=(
        "initializer_cutoff_factor",
        "deterministic_flash_attn",
        "sparse_prediction",  # logits at masked positions alone: the same loss
        "sparse_pred_ignore_index",
    ),
    weights={
        "embed_tokens": "embeddings.tok_embeddings",
        "embed_norm": "embeddings.norm",
        **layer("layers.{i}", self_attn_norm="attn_norm", o_proj="attn.Wo", down_proj="mlp.Wo"),
        "norm": "final_norm",
    },
    rules=(
        qkv("layers.{i}.attn.Wqkv", fused),
        Rule(("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"), ("layers.{i}.mlp.Wi",), halves),
    ),
    heads={
        "ForMaskedLM": {
            "head_transform.dense": "head.dense",
            "head_transform.norm": "head.norm",
            "lm_head": "decoder",
        },
        **{f"For{task}": HEAD for task in ("SequenceClassification", "TokenClassification")},
        **{f"For{task}": HEAD for task in ("QuestionAnswering", "MultipleChoice")},
    },
)
