"""The configuration of an encoder, or of an encoder-decoder, that starts from a decoder: field by field.

Every field of a decoder is in one of three groups: it means the same in the other stack and is copied, it is changed
so that it goes on meaning the same (`CHANGED`), or it says nothing there (`LEFT_OUT`). A decoder that has something
which cannot move is refused (`check_decoder`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from ..models.configuration import LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig, LLMStackConfig


def _window(config: LLMDecoderConfig) -> int | None:
    """A decoder's window counts the token itself, an encoder's does not: the same reach back, and as far ahead."""
    return None if config.sliding_window is None else config.sliding_window - 1


def _buckets(config: LLMDecoderConfig) -> int:
    """A bidirectional bias gives half of its buckets to what lies ahead."""
    doubled = config.position_embedding == "relative_bias"
    return config.relative_attention_num_buckets * (2 if doubled else 1)


# field -> its value in an encoder
CHANGED: dict[str, Callable[[LLMDecoderConfig], Any]] = {
    "sliding_window": _window,
    "relative_attention_num_buckets": _buckets,
}
# field -> why it says nothing in an encoder
LEFT_OUT = {
    "use_cache": "an encoder keeps no keys and values for later",
    "alibi_dtype": "the dtype that a causal bias is rounded to; a bidirectional one is computed in float32",
    "add_cross_attention": "there is no other encoder to attend to",
    "cross_attention_hidden_size": "belongs to `add_cross_attention`",
    "classifier_bias": "task heads are new, and as an encoder has them",
    "hf_llm_version": "written when the model is saved",
}
_BASE_FIELDS = {field.name for field in dataclasses.fields(PreTrainedConfig)}
COPIED = tuple(
    field.name
    for field in dataclasses.fields(LLMStackConfig)
    if field.name not in _BASE_FIELDS and field.name not in CHANGED and field.name not in LEFT_OUT
)
# what the halves of an encoder-decoder have in common
IN_COMMON = ("vocab_size", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")


def check_decoder(config: PreTrainedConfig) -> None:
    """Raise ValueError, naming the field, if no other stack can start from a model with this configuration."""
    reason = None
    if not isinstance(config, LLMDecoderConfig):
        reason = f"it is a model of type {config.model_type!r}, not a decoder"
    elif config.add_cross_attention:
        reason = "`add_cross_attention=True`: its cross-attention has no place there"
    if reason is not None:
        raise ValueError(f"No encoder or encoder-decoder can start from this model: {reason}.")


def encoder_config(decoder: LLMDecoderConfig, **fields) -> LLMEncoderConfig:
    """The configuration of the encoder that starts from a decoder.

    Args:
        decoder: the decoder's configuration.
        fields: what is to be otherwise, such as `classifier_pooling="cls"` or dropout.

    Raises:
        ValueError: the decoder has something that cannot move, or a field is out of range.
    """
    check_decoder(decoder)
    return LLMEncoderConfig(**{**_encoder_fields(decoder), **fields})


def encoder_decoder_config(decoder: LLMDecoderConfig, tied: bool = False, **fields) -> LLMEncoderDecoderConfig:
    """The configuration of the encoder-decoder whose halves both start from a decoder.

    Args:
        decoder: the decoder's configuration.
        tied: whether the halves share their layers.
        fields: what is to be otherwise; `encoder` and `decoder` are dicts of such fields. Unless it is among them, the
            decoder's inputs start with `bos_token_id`, as its documents did, or `pad_token_id` where it has none.

    Raises:
        ValueError: as for `encoder_config`.
    """
    check_decoder(decoder)
    common = {name: fields.pop(name, getattr(decoder, name)) for name in IN_COMMON}
    halves = {
        "encoder": {**_encoder_fields(decoder), **common, **fields.pop("encoder", {})},
        "decoder": {**_decoder_fields(decoder), **common, **fields.pop("decoder", {})},
    }
    start = common["pad_token_id"] if common["bos_token_id"] is None else common["bos_token_id"]
    whole = {"share_layers": tied, "decoder_start_token_id": start, **common, **fields}
    return LLMEncoderDecoderConfig(**whole, **halves)


def _encoder_fields(decoder: LLMDecoderConfig) -> dict[str, Any]:
    copied = {name: getattr(decoder, name) for name in COPIED if hasattr(decoder, name)}
    return copied | {name: change(decoder) for name, change in CHANGED.items()}


def _decoder_fields(decoder: LLMDecoderConfig) -> dict[str, Any]:
    names = (*COPIED, *CHANGED, "alibi_dtype", "use_cache", "classifier_bias")
    return {name: getattr(decoder, name) for name in names if hasattr(decoder, name)}
