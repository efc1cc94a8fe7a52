"""BART, mBART, Pegasus and Marian: the original transformer's layout with learned or sinusoidal positions."""

import math
from types import SimpleNamespace
from typing import Any

import torch

from ...models.positions import SinusoidalPositions
from ..family import Family, Field, Group, Rule, same
from ..halves import HALVES, both, both_have, halves, in_both
from ..ops import unsqueeze


def _scale_to_ours(native) -> dict[str, Any]:
    return both_have({"embedding_multiplier": math.sqrt(native.d_model) if native.scale_embedding else None})


def _scale_to_native(ours) -> dict[str, Any]:
    return {"scale_embedding": ours.encoder.embedding_multiplier not in (None, 1.0)}


def _sinusoids(shape: torch.Size) -> torch.Tensor:
    """The position table (positions, hidden) that Pegasus saves and Marian computes."""
    positions, width = shape
    return SinusoidalPositions(SimpleNamespace(position_offset=0), width)(torch.arange(positions))


def _half(name: str) -> dict[str, str]:
    return {
        "embed_norm": "layernorm_embedding",
        "layers.{i}.self_attn.o_proj": "layers.{i}.self_attn.out_proj",
        "layers.{i}.self_attn_norm": "layers.{i}.self_attn_layer_norm",
        "layers.{i}.cross_attn.o_proj": "layers.{i}.encoder_attn.out_proj",
        "layers.{i}.cross_attn": "layers.{i}.encoder_attn",
        "layers.{i}.cross_attn_norm": "layers.{i}.encoder_attn_layer_norm",
        "layers.{i}.mlp.up_proj": "layers.{i}.fc1",
        "layers.{i}.mlp.down_proj": "layers.{i}.fc2",
        "layers.{i}.mlp_norm": "layers.{i}.final_layer_norm",
        "norm": "layer_norm",
    }


FIELDS = (
    *in_both(hidden_size="d_model", max_position_embeddings="max_position_embeddings"),
    *(
        Field(f"{half}_{native}", (f"{half}.{ours}",))
        for half in HALVES
        for ours, native in {
            "num_hidden_layers": "layers",
            "num_attention_heads": "attention_heads",
            "intermediate_size": "ffn_dim",
        }.items()
    ),
    *in_both(hidden_act="activation_function", initializer_range="init_std"),
    *in_both(attention_dropout="attention_dropout", activation_dropout="activation_dropout"),
    Field("dropout", both("residual_dropout", "embedding_dropout")),
    Group(("scale_embedding",), both("embedding_multiplier"), _scale_to_ours, _scale_to_native),
    *same("use_cache"),
)
VOCABULARY = in_both(vocab_size="vocab_size")
# Where the head is not tied, transformers does not tie the halves' embeddings either.
TIED_OR_NOT = (Field("tie_word_embeddings", ("tie_word_embeddings", "share_embeddings")),)
CONSTANTS = {
    **both_have(
        {
            "norm_type": "layernorm",
            "norm_bias": True,
            "norm_eps": 1e-5,
            "attention_bias": True,
            "feed_forward": "plain",
            "mlp_bias": True,
        }
    ),
    "decoder.lm_head_bias": True,
    "classifier_pooling": "eos",
    "classifier_transform": True,
    "classifier_activation": "tanh",
}
LEARNED = both_have({"position_embedding": "learned", "position_offset": 2})
SINUSOIDAL = both_have({"position_embedding": "sinusoidal"})
POST_NORM = both_have({"norm_placement": "post", "final_norm": False})
EMBEDDING_NORM = both_have({"embedding_norm": True})
LANGUAGE_HEAD = {"ForConditionalGeneration": {}}
TASK_HEADS = {
    "ForSequenceClassification": {
        "transform.dense": "classification_head.dense",
        "score": "classification_head.out_proj",
    },
    "ForQuestionAnswering": {"score": "qa_outputs"},
}
COMMON = {
    "stack": "encoder_decoder",
    "requires": {"is_decoder": False},
    "weights": halves(_half),
    "rules": (Rule(("lm_head.bias",), ("final_logits_bias",), unsqueeze),),
    "unused": (
        r"(^|\.)shared\.weight$",  # where nothing is tied to it
        r"^final_logits_bias$",  # of zeros, for a head without a bias
    ),
    "undecided": ("decoder.lm_head_bias",),
}
# Layers skipped in training; the generation configuration has the forced token.
IGNORES = ("encoder_layerdrop", "decoder_layerdrop", "forced_eos_token_id")


def _norms(before: bool, of_embeddings: bool):
    """Which norms there are, as the checkpoints of the papers said it."""
    return lambda native: {"normalize_before": before, "normalize_embedding": of_embeddings}


FAMILIES = (
    Family(
        name="bart",
        fields=(*FIELDS, *VOCABULARY, *TIED_OR_NOT, *same("classifier_dropout")),
        constants=CONSTANTS | LEARNED | POST_NORM | EMBEDDING_NORM,
        ignores=IGNORES,
        legacy=_norms(before=False, of_embeddings=True),
        heads=LANGUAGE_HEAD | TASK_HEADS,
        **COMMON,
    ),
    Family(
        name="mbart",
        fields=(*FIELDS, *VOCABULARY, *TIED_OR_NOT, *same("classifier_dropout")),
        constants=CONSTANTS | LEARNED | EMBEDDING_NORM | {"decoder_start": "last_token"},
        ignores=IGNORES,
        legacy=_norms(before=True, of_embeddings=True),
        heads=LANGUAGE_HEAD | TASK_HEADS,
        **COMMON,
    ),
    Family(
        name="pegasus",
        fields=(*FIELDS, *VOCABULARY, *TIED_OR_NOT),
        constants=CONSTANTS | SINUSOIDAL,
        ignores=IGNORES,
        legacy=_norms(before=True, of_embeddings=False),
        heads=LANGUAGE_HEAD,
        derived={r"embed_positions\.weight$": _sinusoids},
        **COMMON,
    ),
    Family(
        name="marian",
        fields=(
            *FIELDS,
            Field("vocab_size", ("encoder.vocab_size",)),
            Field("decoder_vocab_size", ("decoder.vocab_size",)),
            Field("share_encoder_decoder_embeddings", ("share_embeddings",)),
            *same("tie_word_embeddings"),
        ),
        constants=CONSTANTS | SINUSOIDAL | POST_NORM,
        ignores=IGNORES,
        heads=LANGUAGE_HEAD,
        derived={r"embed_positions\.weight$": _sinusoids},
        **COMMON,
    ),
)
