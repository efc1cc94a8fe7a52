"""Stack surgery: an encoder, or an encoder-decoder, that starts from a decoder's weights.

    LLMEncoderForMaskedLM.from_decoder("outputs/demo", tokenizer=tokenizer)
    LLMEncoderDecoderForConditionalGeneration.from_decoder("outputs/demo", tied=True, tokenizer=tokenizer)

An encoder has the decoder's layers, and every token now sees what comes after it too (https://arxiv.org/abs/2404.05961).
Both halves of an encoder-decoder do (https://arxiv.org/abs/1907.12461, https://arxiv.org/abs/2504.06225). What such a
model is good for it learns in continued pretraining: see `recipes/configs/encoder-from-decoder.yaml`.
"""

import logging
from pathlib import Path

import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .. import registration
from .configurations import check_decoder, encoder_config, encoder_decoder_config
from .weights import check_cross_attention, move_weights, silence


__all__ = ["attach", "build_from_decoder", "encoder_config", "encoder_decoder_config", "load_decoder"]

logger = logging.getLogger(__name__)


def load_decoder(decoder: PreTrainedModel | str | Path) -> PreTrainedModel:
    """
    A decoder of ours: the model itself, or a native one imported, or what is at a path or Hub id, of either kind.

    Raises:
        ValueError: not a decoder, or one that cannot be imported or moved.
    """
    from ..interop import from_native  # its tables are read when they are first asked for
    from ..interop.loading import load_strictly, read_config

    if isinstance(decoder, (str, Path)):
        config = read_config(str(decoder))
        named = (config.get("architectures") or ["LLMDecoderForCausalLM"])[0]
        ours = config["model_type"].startswith("hf_llm_")
        decoder = load_strictly(getattr(transformers, named), str(decoder)) if ours else from_native(str(decoder))
    elif not isinstance(decoder, PreTrainedModel):
        raise ValueError(f"from_decoder takes a model of transformers or a path, not {type(decoder).__name__}.")
    elif not decoder.config.model_type.startswith("hf_llm_"):
        decoder = from_native(decoder)
    check_decoder(decoder.config)
    return decoder


def build_from_decoder(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    decoder: PreTrainedModel,
    cross_attention: str = "self_attention",
    known_tokens: int | None = None,
) -> PreTrainedModel:
    """
    A model with a decoder's weights, in its dtype and place, in eval mode.

    Args:
        config: from `encoder_config` or `encoder_decoder_config`; its vocabulary may be larger than the decoder's.
        decoder: from `load_decoder`; it is left as it is.
        cross_attention: see `hf_llm.surgery.weights.check_cross_attention`.
        known_tokens: ids from here on are new to the decoder and start from the mean of the others; `None` for those
            beyond its vocabulary.

    Raises:
        ValueError: sizes disagree, or `cross_attention` is impossible with the configuration.
    """
    if config.is_encoder_decoder:
        check_cross_attention(config.decoder, cross_attention)
    model = model_class._from_config(config, dtype=decoder.dtype).to(decoder.device).eval()
    kept = move_weights(decoder, model, cross_attention, known_tokens)
    if config.is_encoder_decoder and cross_attention == "zero":
        for layer in model.base_model.decoder.layers:
            silence(layer, "cross_attn")
    if kept:
        logger.warning("Newly initialised, for the decoder has no such weights: %s", ", ".join(kept))
    return model


def _encoder_from_decoder(
    cls, decoder: PreTrainedModel | str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, **fields
) -> PreTrainedModel:
    """
    An encoder with a decoder's layers, made bidirectional.

    Args:
        decoder: a decoder of ours or a native one, or the path or Hub id of either.
        tokenizer: the decoder's. It is given, in place, the special tokens that the stack needs (see
            `hf_llm.surgery.tokens.prepare_tokenizer`), the vocabulary grows to hold them, and the configuration takes
            its special ids from it.
        fields: of the configuration that are to be otherwise, such as `classifier_pooling="cls"` (not sizes).

    Returns:
        The model, in eval mode. Its language-modeling head is the decoder's; task heads are newly initialised.

    Raises:
        ValueError: the decoder cannot be imported, or has something that an encoder cannot have.
    """
    decoder = load_decoder(decoder)
    known, token_fields = _tokens(decoder, tokenizer, "encoder")
    config = encoder_config(decoder.config, **{**token_fields, **fields})
    return build_from_decoder(cls, config, decoder, known_tokens=known)


def _encoder_decoder_from_decoder(
    cls,
    decoder: PreTrainedModel | str | Path,
    *,
    tied: bool = False,
    cross_attention: str = "self_attention",
    tokenizer: PreTrainedTokenizerBase | None = None,
    **fields,
) -> PreTrainedModel:
    """
    An encoder-decoder whose halves both have a decoder's layers; the encoder's are made bidirectional.

    Args:
        decoder, tokenizer: as for an encoder.
        tied: the halves share one set of layers, cross-attention apart; else each has its own. They share the token
            embeddings either way (unless `share_embeddings=False`).
        cross_attention: what it starts from: `self_attention` of the same layer, `zero` (the same, but silent at
            first, so that the decoder half computes what the decoder did), or `random`.
        fields: of the configuration that are to be otherwise; `encoder` and `decoder` are dicts of such fields.

    Returns, raises: as for an encoder; and ValueError if `cross_attention` is impossible with the configuration.
    """
    decoder = load_decoder(decoder)
    known, token_fields = _tokens(decoder, tokenizer, "encoder-decoder")
    config = encoder_decoder_config(decoder.config, tied, **{**token_fields, **fields})
    return build_from_decoder(cls, config, decoder, cross_attention, known)


def _tokens(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stack: str
) -> tuple[int | None, dict[str, int]]:
    """How many ids of a tokenizer the decoder knows, and the fields that follow from the tokenizer."""
    if tokenizer is None:
        return None, {}
    from .tokens import prepare_tokenizer, token_fields  # with hf_llm.data, which only training needs

    known = prepare_tokenizer(tokenizer, stack)
    return known, token_fields(tokenizer, decoder.config.vocab_size)


def attach() -> None:
    """Give the models their `from_decoder` (the files of `models/` travel without this directory)."""
    for stack, method in (("encoder", _encoder_from_decoder), ("encoder_decoder", _encoder_decoder_from_decoder)):
        for model_class in registration.model_classes(stack):
            model_class.from_decoder = classmethod(method)
