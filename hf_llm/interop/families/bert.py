"""BERT and its relations: post-norm encoders with learned positions."""

from dataclasses import replace
from typing import Any

from ..family import Family, Field, Group, renamed, same
from ..parts import LAYER_NORM, LEARNED, PLAIN, POST_NORM, QA, layer, narrow_embeddings, two_layers


def _positions_of(native) -> str | None:
    kind = getattr(native, "position_embedding_type", "absolute")
    return None if kind == "absolute" else f"`position_embedding_type={kind!r}`: transformers ignores it as well"


def _classifier_dropout_to_ours(native) -> dict[str, Any]:
    value = native.classifier_dropout
    return {"classifier_dropout": native.hidden_dropout_prob if value is None else value}


def _classifier_dropout_to_native(ours) -> dict[str, Any]:
    follows = ours.classifier_dropout == ours.residual_dropout
    return {"classifier_dropout": None if follows else ours.classifier_dropout}


def _counted_positions_to_ours(native) -> dict[str, Any]:
    offset = native.pad_token_id + 1  # these rows of the table come before position 0; padding has the last of them
    return {"position_offset": offset, "max_position_embeddings": native.max_position_embeddings - offset}


def _some_types(number: int) -> int:
    if not number:
        raise ValueError("`type_vocab_size=0`: it has token types.")
    return number


SIZES = (
    *same("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
    *same("hidden_act", "tie_word_embeddings", "initializer_range"),
    *renamed(norm_eps="layer_norm_eps", attention_dropout="attention_probs_dropout_prob"),
    Field("type_vocab_size", ("type_vocab_size",), to_native=_some_types),
    Field("hidden_dropout_prob", ("residual_dropout", "embedding_dropout")),
)
DEPTH, LENGTH = same("num_hidden_layers", "max_position_embeddings")
CLASSIFIER_DROPOUT = Group(
    ("classifier_dropout",), ("classifier_dropout",), _classifier_dropout_to_ours, _classifier_dropout_to_native
)
# Positions count the tokens that are not padding, from `pad_token_id + 1`.
COUNTED_POSITIONS = Group(
    ("max_position_embeddings",),
    ("max_position_embeddings", "position_offset"),
    _counted_positions_to_ours,
    lambda ours: {"max_position_embeddings": ours.max_position_embeddings + ours.position_offset},
)
TRUE = "embedding_norm attention_bias lm_head_bias head_transform classifier_transform classifier_bias".split()
CONSTANTS = LAYER_NORM | PLAIN | POST_NORM | LEARNED | dict.fromkeys(TRUE, True) | {"classifier_pooling": "cls"}
TANH = CONSTANTS | {"classifier_activation": "tanh"}
NO_POOLER = {"add_pooling_layer": False}
EMBEDDINGS = {
    "embed_tokens": "embeddings.word_embeddings",
    "embed_positions": "embeddings.position_embeddings",
    "embed_token_types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
}


def _heads(dense: str, norm: str, decoder: str, classification: dict[str, str], choice: dict[str, str] | None = None):
    """dense, norm, decoder: modules of the masked language model's head. choice: as classification, if not given."""
    return {
        "ForMaskedLM": {"head_transform.dense": dense, "head_transform.norm": norm, "lm_head": decoder},
        "ForSequenceClassification": classification,
        "ForTokenClassification": {"score": "classifier"},
        **QA,
        "ForMultipleChoice": choice or classification,
    }


OUT_PROJ = two_layers("classifier.dense", "classifier.out_proj")

BERT = Family(
    name="bert",
    stack="encoder",
    fields=(*SIZES, DEPTH, LENGTH, CLASSIFIER_DROPOUT),
    constants=TANH,
    requires={"is_decoder": False, "add_cross_attention": False},
    ignores=("use_cache",),
    legacy=lambda native: {"position_embedding_type": "absolute"},
    weights=EMBEDDINGS
    | layer("encoder.layer.{i}.attention", q_proj="self.query", k_proj="self.key", v_proj="self.value")
    | layer("encoder.layer.{i}.attention", o_proj="output.dense", self_attn_norm="output.LayerNorm")
    | layer("encoder.layer.{i}", up_proj="intermediate.dense", down_proj="output.dense", mlp_norm="output.LayerNorm"),
    heads=_heads(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        two_layers("bert.pooler.dense"),
    ),
    # the pooler where no head reads it; next sentence prediction; the head's bias, which an untied head has twice
    unused=(r"^(bert\.)?pooler\.", r"^cls\.seq_relationship\.", r"^cls\.predictions\.bias$"),
    base_arguments=NO_POOLER,
    refuse=_positions_of,
)
ROBERTA = replace(
    BERT,
    name="roberta",
    fields=(*SIZES, DEPTH, COUNTED_POSITIONS, CLASSIFIER_DROPOUT),
    constants=TANH | {"position_ids_source": "input_ids", "head_transform_act": "gelu"},
    heads=_heads(
        "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", OUT_PROJ, two_layers("roberta.pooler.dense")
    ),
    unused=(r"^(roberta\.)?pooler\.", r"^lm_head\.bias$"),
)
XLM_ROBERTA = replace(ROBERTA, name="xlm-roberta")
ELECTRA = replace(
    BERT,
    name="electra",
    fields=(*BERT.fields, narrow_embeddings("embedding_size", "embeddings")),
    constants=CONSTANTS
    | {"head_transform_act": "gelu", "classifier_activation": "gelu", "embedding_projection_bias": True},
    requires=BERT.requires | {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
    ignores=("use_cache", "summary_last_dropout"),
    legacy=lambda native: {},
    weights=BERT.weights | {"embed_projection": "embeddings_project"},
    heads=_heads(
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
        OUT_PROJ,
        two_layers("sequence_summary.summary"),
    ),
    unused=(),
    base_arguments={},
)
DISTILBERT = Family(
    name="distilbert",
    stack="encoder",
    fields=(
        *same("vocab_size", "max_position_embeddings", "tie_word_embeddings", "initializer_range"),
        *renamed(hidden_size="dim", intermediate_size="hidden_dim", hidden_act="activation"),
        *renamed(num_hidden_layers="n_layers", num_attention_heads="n_heads"),
        *renamed(classifier_dropout="seq_classif_dropout", attention_dropout="attention_dropout"),
        Field("dropout", ("residual_dropout", "embedding_dropout")),
    ),
    constants=CONSTANTS | {"norm_eps": 1e-12, "classifier_activation": "relu"},
    # the position table is a parameter however it began; dropout before the answer's scores
    ignores=("sinusoidal_pos_embds", "qa_dropout"),
    weights=EMBEDDINGS
    | layer("transformer.layer.{i}.attention", q_proj="q_lin", k_proj="k_lin", v_proj="v_lin", o_proj="out_lin")
    | layer("transformer.layer.{i}", self_attn_norm="sa_layer_norm", mlp_norm="output_layer_norm")
    | layer("transformer.layer.{i}.ffn", up_proj="lin1", down_proj="lin2"),
    heads=_heads(
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
        two_layers("pre_classifier"),
    ),
)


# ---- ALBERT: layers in groups that repeat ------------------------------------------------------------------------


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


def _groups_to_ours(native) -> dict[str, Any]:
    inner, groups, depth = native.inner_group_num, native.num_hidden_groups, native.num_hidden_layers
    return {"num_hidden_layers": depth * inner, "layer_sharing": _sharing(depth, groups, inner)}


GROUPS = ("num_hidden_layers", "num_hidden_groups", "inner_group_num")


def _albert_weights(ours) -> dict[str, str]:
    _, groups, inner = _groups(ours)
    names = layer("{layer}.attention", q_proj="query", k_proj="key", v_proj="value", o_proj="dense")
    names |= layer("{layer}", self_attn_norm="attention.LayerNorm", mlp_norm="full_layer_layer_norm")
    names |= layer("{layer}", up_proj="ffn", down_proj="ffn_output")
    weights = EMBEDDINGS | {"embed_projection": "encoder.embedding_hidden_mapping_in"}
    for i in range(groups * inner):
        layer_i = f"encoder.albert_layer_groups.{i // inner}.albert_layers.{i % inner}"
        weights |= {ours.replace("{i}", str(i)): native.replace("{layer}", layer_i) for ours, native in names.items()}
    return weights


ALBERT = replace(
    BERT,
    name="albert",
    fields=(
        *SIZES,
        LENGTH,
        Group(
            GROUPS,
            ("num_hidden_layers", "layer_sharing"),
            _groups_to_ours,
            lambda ours: dict(zip(GROUPS, _groups(ours))),
        ),
        *renamed(classifier_dropout="classifier_dropout_prob"),
        *same("embedding_size"),
    ),
    # a projection even where it does not widen
    constants=TANH | {"embedding_projection": "embeddings", "embedding_projection_bias": True},
    requires={},
    ignores=(),
    legacy=lambda native: {},
    weights=_albert_weights,
    heads=_heads(
        "predictions.dense",
        "predictions.LayerNorm",
        "predictions.decoder",
        two_layers("albert.pooler"),
    ),
    unused=(r"^(albert\.)?pooler\.", r"^sop_classifier\.", r"^predictions\.bias$"),
)
