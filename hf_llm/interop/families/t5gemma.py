"""T5Gemma: an encoder and a decoder that are each a Gemma 2, of sizes of their own."""

from typing import Any

from ..family import TOKENS, Family, Field, Group, read_native, same, write_native
from ..parts import HALVES, both, both_have, halves, layer
from .gemma import GEMMA2, SANDWICH_NORMS


# What a half says: all that Gemma 2 says, but for what the whole says for both.
WHOLE = ("tie_word_embeddings", "attention_dropout", "use_cache")
HALF = tuple(entry for entry in GEMMA2.fields if entry.native not in WHOLE)
HALF_TOKENS = tuple(name for name in TOKENS if name != "decoder_start_token_id")


def _halves_to_ours(native) -> dict[str, Any]:
    values = {}
    for half in HALVES:
        config = getattr(native, half)
        found = {name: getattr(config, name) for name in HALF_TOKENS} | read_native(HALF, config)
        values |= {f"{half}.{name}": value for name, value in found.items()}
    narrow, wide = native.encoder.hidden_size, native.decoder.hidden_size
    return values | {
        "decoder.cross_attention_hidden_size": None if narrow == wide else narrow,
        "decoder_start_token_id": native.decoder.bos_token_id,
    }


def _half_to_native(ours) -> dict[str, Any]:
    return {name: getattr(ours, name) for name in HALF_TOKENS} | write_native(HALF, ours)


def _halves_to_native(ours) -> dict[str, Any]:
    return {half: _half_to_native(getattr(ours, half)) for half in HALVES} | {"vocab_size": ours.decoder.vocab_size}


def _half_weights(half: str) -> dict[str, str]:
    return SANDWICH_NORMS | layer(
        "layers.{i}",
        self_attn_norm="pre_self_attn_layernorm",
        self_attn_output_norm="post_self_attn_layernorm",
        cross_attn_norm="pre_cross_attn_layernorm",
        cross_attn_output_norm="post_cross_attn_layernorm",
    )


SCORE = {"score": "score.out_proj"}

T5GEMMA = Family(
    name="t5gemma",
    stack="encoder_decoder",
    fields=(
        Group(
            ("encoder", "decoder", "vocab_size"),
            both(*(name for entry in HALF for name in entry.ours)),
            _halves_to_ours,
            _halves_to_native,
        ),
        Field("dropout_rate", both("residual_dropout", "embedding_dropout")),
        Field("attention_dropout", both("attention_dropout")),
        Field("classifier_dropout_rate", ("classifier_dropout",)),
        *same("tie_word_embeddings"),
    ),
    constants={**both_have(**GEMMA2.constants), "share_embeddings": False, "classifier_pooling": "next"},
    requires={"is_encoder_decoder": True},  # without a decoder it is an encoder of this package, not half a model
    weights=halves(_half_weights),
    heads={
        "ForConditionalGeneration": {"lm_head": "lm_head.out_proj"},
        "ForSequenceClassification": SCORE,
        "ForTokenClassification": SCORE,
    },
)
