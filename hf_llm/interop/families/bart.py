"""BART, mBART, Pegasus and Marian: the original transformer's layout with learned or sinusoidal positions."""

import math
from types import SimpleNamespace
from typing import Any

import torch

from ...models.positions import SinusoidalPositions
from ..family import Family, Field, Group, Rule, same
from ..ops import unsqueeze
from ..parts import HALVES, LAYER_NORM, PLAIN, POST_NORM, QA, both, both_have, halves, in_both, layer, two_layers


def _scale_to_ours(native) -> dict[str, Any]:
    return both_have(embedding_multiplier=math.sqrt(native.d_model) if native.scale_embedding else None)


def _scale_to_native(ours) -> dict[str, Any]:
    return {"scale_embedding": ours.encoder.embedding_multiplier not in (None, 1.0)}


def _sinusoids(shape: torch.Size) -> torch.Tensor:
    """The position table (positions, hidden) that Pegasus saves and Marian computes."""
    positions, width = shape
    return SinusoidalPositions(SimpleNamespace(position_offset=0), width)(torch.arange(positions))


def _half(name: str) -> dict[str, str]:
    return {
        "embed_norm": "layernorm_embedding",
        **layer("layers.{i}", o_proj="self_attn.out_proj", self_attn_norm="self_attn_layer_norm"),
        **layer("layers.{i}", cross_o_proj="encoder_attn.out_proj", cross_attn="encoder_attn"),
        **layer("layers.{i}", cross_attn_norm="encoder_attn_layer_norm", mlp_norm="final_layer_norm"),
        **layer("layers.{i}", up_proj="fc1", down_proj="fc2"),
        "norm": "layer_norm",
    }


COUNTS = {"num_hidden_layers": "layers", "num_attention_heads": "attention_heads", "intermediate_size": "ffn_dim"}
FIELDS = (
    *in_both(hidden_size="d_model", max_position_embeddings="max_position_embeddings"),
    *(Field(f"{half}_{native}", (f"{half}.{ours}",)) for half in HALVES for ours, native in COUNTS.items()),
    *in_both(hidden_act="activation_function", initializer_range="init_std"),
    *in_both(attention_dropout="attention_dropout", activation_dropout="activation_dropout"),
    Field("dropout", both("residual_dropout", "embedding_dropout")),
    Group(("scale_embedding",), both("embedding_multiplier"), _scale_to_ours, _scale_to_native),
    *same("use_cache"),
)
ONE_VOCABULARY = (
    *in_both(vocab_size="vocab_size"),
    # where the head is not tied, transformers does not tie the halves' embeddings either
    Field("tie_word_embeddings", ("tie_word_embeddings", "share_embeddings")),
)
TWO_VOCABULARIES = (
    Field("vocab_size", ("encoder.vocab_size",)),
    Field("decoder_vocab_size", ("decoder.vocab_size",)),
    Field("share_encoder_decoder_embeddings", ("share_embeddings",)),
    *same("tie_word_embeddings"),
)
CONSTANTS = {
    **both_have(norm_eps=1e-5, attention_bias=True, **LAYER_NORM, **PLAIN),
    "decoder.lm_head_bias": True,
    "classifier_pooling": "eos",
    "classifier_transform": True,
    "classifier_activation": "tanh",
}
LEARNED = CONSTANTS | both_have(position_embedding="learned", position_offset=2, embedding_norm=True)
SINUSOIDAL = CONSTANTS | both_have(position_embedding="sinusoidal")
SAVED_POSITIONS = {r"embed_positions\.weight$": _sinusoids}
HEADS = {"ForConditionalGeneration": {}}
TASK_HEADS = {"ForSequenceClassification": two_layers("classification_head.dense", "classification_head.out_proj")}


def _bart(name: str, *fields: Field, norms: tuple[bool, bool] | None = None, **table: Any) -> Family:
    """norms: whether they come first in each branch, and whether there is one on the embeddings, as the checkpoints of
    the papers said it."""
    names = () if norms is None else ("normalize_before", "normalize_embedding")
    return Family(
        name,
        "encoder_decoder",
        (*FIELDS, *fields),
        requires={"is_decoder": False},
        # layers skipped in training; the generation configuration has the forced token
        ignores=("encoder_layerdrop", "decoder_layerdrop", "forced_eos_token_id"),
        legacy=lambda native: dict(zip(names, norms or ())),
        weights=halves(_half),
        rules=(Rule(("lm_head.bias",), ("final_logits_bias",), unsqueeze),),
        unused=(
            r"(^|\.)shared\.weight$",  # where nothing is tied to it
            r"^final_logits_bias$",  # of zeros, for a head without a bias
        ),
        undecided=("decoder.lm_head_bias",),
        **{"heads": HEADS, **table},
    )


BART = _bart(
    "bart",
    *ONE_VOCABULARY,
    *same("classifier_dropout"),
    norms=(False, True),
    constants=LEARNED | both_have(**POST_NORM),
    heads=HEADS | TASK_HEADS | QA,
)
MBART = _bart(
    "mbart",
    *ONE_VOCABULARY,
    *same("classifier_dropout"),
    norms=(True, True),
    constants=LEARNED | {"decoder_start": "last_token"},
    heads=HEADS | TASK_HEADS | QA,
)
PEGASUS = _bart("pegasus", *ONE_VOCABULARY, norms=(True, False), constants=SINUSOIDAL, derived=SAVED_POSITIONS)
MARIAN = _bart("marian", *TWO_VOCABULARIES, constants=SINUSOIDAL | both_have(**POST_NORM), derived=SAVED_POSITIONS)
