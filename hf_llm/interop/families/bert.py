"""BERT and its relations: post-norm encoders with learned positions."""

from typing import Any

from ..family import Family, Field, Group, renamed, same
from ..parts import LAYER_NORM_EPS


def _positions_of(native) -> str | None:
    kind = getattr(native, "position_embedding_type", "absolute")
    return None if kind == "absolute" else f"`position_embedding_type={kind!r}`: transformers ignores it as well"


def _absolute_positions(native) -> dict[str, str]:
    return {"position_embedding_type": "absolute"}


def _classifier_dropout_to_ours(native) -> dict[str, Any]:
    value = native.classifier_dropout
    return {"classifier_dropout": native.hidden_dropout_prob if value is None else value}


def _classifier_dropout_to_native(ours) -> dict[str, Any]:
    follows = ours.classifier_dropout == ours.residual_dropout
    return {"classifier_dropout": None if follows else ours.classifier_dropout}


def _counted_positions_to_ours(native) -> dict[str, Any]:
    offset = native.pad_token_id + 1  # these rows of the table come before position 0; padding has the last of them
    return {"position_offset": offset, "max_position_embeddings": native.max_position_embeddings - offset}


def _counted_positions_to_native(ours) -> dict[str, Any]:
    return {"max_position_embeddings": ours.max_position_embeddings + ours.position_offset}


def _narrow_embeddings_to_ours(native) -> dict[str, Any]:
    if native.embedding_size == native.hidden_size:
        return {}
    return {
        "embedding_size": native.embedding_size,
        "embedding_projection": "embeddings",
        "embedding_projection_bias": True,
    }


def _narrow_embeddings_to_native(ours) -> dict[str, Any]:
    return {"embedding_size": ours.embedding_size or ours.hidden_size}


def _groups_to_ours(native) -> dict[str, Any]:
    inner, groups, depth = native.inner_group_num, native.num_hidden_groups, native.num_hidden_layers
    return {"num_hidden_layers": depth * inner, "layer_sharing": _sharing(depth, groups, inner)}


def _groups_to_native(ours) -> dict[str, Any]:
    depth, groups, inner = _groups(ours)
    return {"num_hidden_layers": depth, "num_hidden_groups": groups, "inner_group_num": inner}


def _sharing(depth: int, groups: int, inner: int) -> list[int]:
    """Which of the groups * inner distinct layers stands at each of the depth * inner places."""
    return [int(i / (depth / groups)) * inner + j for i in range(depth) for j in range(inner)]


def _groups(ours) -> tuple[int, int, int]:
    """Steps, groups, and layers in a group: the smallest that give our `layer_sharing`."""
    sharing = ours.layer_sharing or list(range(ours.num_hidden_layers))
    distinct = max(sharing) + 1
    for inner in range(1, distinct + 1):
        if distinct % inner == 0 and len(sharing) % inner == 0:
            found = len(sharing) // inner, distinct // inner, inner
            if _sharing(*found) == sharing:
                return found
    raise ValueError(f"`layer_sharing={ours.layer_sharing}` is no sequence of groups that each repeat.")


def _some_types(number: int) -> int:
    if not number:
        raise ValueError("`type_vocab_size=0`: it has token types.")
    return number


SIZES = (
    *same("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
    *same("hidden_act", "tie_word_embeddings", "initializer_range"),
    *LAYER_NORM_EPS,
)
DEPTH = same("num_hidden_layers")
LENGTH = same("max_position_embeddings")
TYPES = (Field("type_vocab_size", ("type_vocab_size",), to_native=_some_types),)
DROPOUT = (
    Field("hidden_dropout_prob", ("residual_dropout", "embedding_dropout")),
    *renamed(attention_dropout="attention_probs_dropout_prob"),
)
CLASSIFIER_DROPOUT = Group(
    ("classifier_dropout",), ("classifier_dropout",), _classifier_dropout_to_ours, _classifier_dropout_to_native
)
# Positions count the tokens that are not padding, from `pad_token_id + 1`.
COUNTED_POSITIONS = Group(
    ("max_position_embeddings",),
    ("max_position_embeddings", "position_offset"),
    _counted_positions_to_ours,
    _counted_positions_to_native,
)
CONSTANTS = {
    "norm_type": "layernorm",
    "norm_bias": True,
    "norm_placement": "post",
    "embedding_norm": True,
    "final_norm": False,
    "position_embedding": "learned",
    "attention_bias": True,
    "feed_forward": "plain",
    "mlp_bias": True,
    "lm_head_bias": True,
    "head_transform": True,
    "classifier_pooling": "cls",
    "classifier_transform": True,
    "classifier_bias": True,
}
ENCODER_ONLY = {"is_decoder": False, "add_cross_attention": False}
NO_POOLER = {"add_pooling_layer": False}

EMBEDDINGS = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "embed_token_types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
}
WEIGHTS = EMBEDDINGS | {
    "layers.{i}.self_attn.q_proj": "encoder.layer.{i}.attention.self.query",
    "layers.{i}.self_attn.k_proj": "encoder.layer.{i}.attention.self.key",
    "layers.{i}.self_attn.v_proj": "encoder.layer.{i}.attention.self.value",
    "layers.{i}.self_attn.o_proj": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.self_attn_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.mlp.up_proj": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.mlp.down_proj": "encoder.layer.{i}.output.dense",
    "layers.{i}.mlp_norm": "encoder.layer.{i}.output.LayerNorm",
}
TOKEN_HEADS = {"ForTokenClassification": {"score": "classifier"}, "ForQuestionAnswering": {"score": "qa_outputs"}}
OUT_PROJ = {"transform.dense": "classifier.dense", "score": "classifier.out_proj"}


def _pooled(pooler: str) -> dict[str, str]:
    return {"transform.dense": pooler, "score": "classifier"}


BERT = Family(
    name="bert",
    stack="encoder",
    fields=(*SIZES, *DEPTH, *LENGTH, *TYPES, *DROPOUT, CLASSIFIER_DROPOUT),
    constants=CONSTANTS | {"classifier_activation": "tanh"},
    requires=ENCODER_ONLY,
    ignores=("use_cache",),
    legacy=_absolute_positions,
    weights=WEIGHTS,
    heads={
        "ForMaskedLM": {
            "head_transform.dense": "cls.predictions.transform.dense",
            "head_transform.norm": "cls.predictions.transform.LayerNorm",
            "lm_head": "cls.predictions.decoder",
        },
        "ForSequenceClassification": _pooled("bert.pooler.dense"),
        **TOKEN_HEADS,
        "ForMultipleChoice": _pooled("bert.pooler.dense"),
    },
    # the pooler where no head reads it; next sentence prediction; the head's bias, which an untied head has twice
    unused=(r"^(bert\.)?pooler\.", r"^cls\.seq_relationship\.", r"^cls\.predictions\.bias$"),
    base_arguments=NO_POOLER,
    refuse=_positions_of,
)


def _roberta(name: str) -> Family:
    return Family(
        name=name,
        stack="encoder",
        fields=(*SIZES, *DEPTH, COUNTED_POSITIONS, *TYPES, *DROPOUT, CLASSIFIER_DROPOUT),
        constants=CONSTANTS
        | {"position_ids_source": "input_ids", "head_transform_act": "gelu", "classifier_activation": "tanh"},
        requires=ENCODER_ONLY,
        ignores=("use_cache",),
        legacy=_absolute_positions,
        weights=WEIGHTS,
        heads={
            "ForMaskedLM": {
                "head_transform.dense": "lm_head.dense",
                "head_transform.norm": "lm_head.layer_norm",
                "lm_head": "lm_head.decoder",
            },
            "ForSequenceClassification": OUT_PROJ,
            **TOKEN_HEADS,
            "ForMultipleChoice": _pooled("roberta.pooler.dense"),
        },
        unused=(r"^(roberta\.)?pooler\.", r"^lm_head\.bias$"),
        base_arguments=NO_POOLER,
        refuse=_positions_of,
    )


DISTILBERT = Family(
    name="distilbert",
    stack="encoder",
    fields=(
        *same("vocab_size", "max_position_embeddings", "tie_word_embeddings", "initializer_range"),
        *renamed(
            hidden_size="dim",
            intermediate_size="hidden_dim",
            num_hidden_layers="n_layers",
            num_attention_heads="n_heads",
            hidden_act="activation",
            classifier_dropout="seq_classif_dropout",
        ),
        Field("dropout", ("residual_dropout", "embedding_dropout")),
        *same("attention_dropout"),
    ),
    constants=CONSTANTS | {"norm_eps": 1e-12, "classifier_activation": "relu"},
    # the position table is a parameter however it began; dropout before the answer's scores
    ignores=("sinusoidal_pos_embds", "qa_dropout"),
    weights=EMBEDDINGS
    | {
        "layers.{i}.self_attn.q_proj": "transformer.layer.{i}.attention.q_lin",
        "layers.{i}.self_attn.k_proj": "transformer.layer.{i}.attention.k_lin",
        "layers.{i}.self_attn.v_proj": "transformer.layer.{i}.attention.v_lin",
        "layers.{i}.self_attn.o_proj": "transformer.layer.{i}.attention.out_lin",
        "layers.{i}.self_attn_norm": "transformer.layer.{i}.sa_layer_norm",
        "layers.{i}.mlp.up_proj": "transformer.layer.{i}.ffn.lin1",
        "layers.{i}.mlp.down_proj": "transformer.layer.{i}.ffn.lin2",
        "layers.{i}.mlp_norm": "transformer.layer.{i}.output_layer_norm",
    },
    heads={
        "ForMaskedLM": {
            "head_transform.dense": "vocab_transform",
            "head_transform.norm": "vocab_layer_norm",
            "lm_head": "vocab_projector",
        },
        "ForSequenceClassification": _pooled("pre_classifier"),
        **TOKEN_HEADS,
        "ForMultipleChoice": _pooled("pre_classifier"),
    },
)


def _albert_weights(ours) -> dict[str, str]:
    _, groups, inner = _groups(ours)
    weights = EMBEDDINGS | {"embed_projection": "encoder.embedding_hidden_mapping_in"}
    for i in range(groups * inner):
        layer = f"encoder.albert_layer_groups.{i // inner}.albert_layers.{i % inner}"
        weights |= {
            f"layers.{i}.self_attn.q_proj": f"{layer}.attention.query",
            f"layers.{i}.self_attn.k_proj": f"{layer}.attention.key",
            f"layers.{i}.self_attn.v_proj": f"{layer}.attention.value",
            f"layers.{i}.self_attn.o_proj": f"{layer}.attention.dense",
            f"layers.{i}.self_attn_norm": f"{layer}.attention.LayerNorm",
            f"layers.{i}.mlp.up_proj": f"{layer}.ffn",
            f"layers.{i}.mlp.down_proj": f"{layer}.ffn_output",
            f"layers.{i}.mlp_norm": f"{layer}.full_layer_layer_norm",
        }
    return weights


ALBERT = Family(
    name="albert",
    stack="encoder",
    fields=(
        *SIZES,
        Group(
            ("num_hidden_layers", "num_hidden_groups", "inner_group_num"),
            ("num_hidden_layers", "layer_sharing"),
            _groups_to_ours,
            _groups_to_native,
        ),
        *LENGTH,
        *TYPES,
        *DROPOUT,
        *renamed(classifier_dropout="classifier_dropout_prob"),
        *same("embedding_size"),
    ),
    constants=CONSTANTS
    | {
        "embedding_projection": "embeddings",  # even where it does not widen
        "embedding_projection_bias": True,
        "classifier_activation": "tanh",
    },
    weights=_albert_weights,
    heads={
        "ForMaskedLM": {
            "head_transform.dense": "predictions.dense",
            "head_transform.norm": "predictions.LayerNorm",
            "lm_head": "predictions.decoder",
        },
        "ForSequenceClassification": _pooled("albert.pooler"),
        **TOKEN_HEADS,
        "ForMultipleChoice": _pooled("albert.pooler"),
    },
    unused=(r"^(albert\.)?pooler\.", r"^sop_classifier\.", r"^predictions\.bias$"),
    base_arguments=NO_POOLER,
    refuse=_positions_of,
)

ELECTRA = Family(
    name="electra",
    stack="encoder",
    fields=(
        *SIZES,
        *DEPTH,
        *LENGTH,
        *TYPES,
        *DROPOUT,
        CLASSIFIER_DROPOUT,
        Group(
            ("embedding_size",),
            ("embedding_size", "embedding_projection", "embedding_projection_bias"),
            _narrow_embeddings_to_ours,
            _narrow_embeddings_to_native,
        ),
    ),
    constants=CONSTANTS | {"head_transform_act": "gelu", "classifier_activation": "gelu"},
    requires=ENCODER_ONLY | {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
    ignores=("use_cache", "summary_last_dropout"),
    weights=WEIGHTS | {"embed_projection": "embeddings_project"},
    heads={
        "ForMaskedLM": {
            "head_transform.dense": "generator_predictions.dense",
            "head_transform.norm": "generator_predictions.LayerNorm",
            "lm_head": "generator_lm_head",
        },
        "ForSequenceClassification": OUT_PROJ,
        **TOKEN_HEADS,
        "ForMultipleChoice": _pooled("sequence_summary.summary"),
    },
    refuse=_positions_of,
)

FAMILIES = (BERT, _roberta("roberta"), _roberta("xlm-roberta"), DISTILBERT, ALBERT, ELECTRA)
