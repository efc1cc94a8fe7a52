"""Pairs of models to measure: transformers' own class, and ours with the same width, depth and number of parameters.

All have a vocabulary of 8192, tied embeddings, no dropout, and about 14 to 16 million parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from transformers import PreTrainedModel

import hf_llm


VOCABULARY = 8192
ROW = 512
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTH, HEADS, FEED_FORWARD = 384, 6, 1024
STEP = 32  # of the width of our feed-forward


def llama(positions: int) -> PreTrainedModel:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=7,
            num_attention_heads=HEADS,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            **SPECIAL,
        )
    )


def bert(positions: int) -> PreTrainedModel:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=6,
            num_attention_heads=HEADS,
            max_position_embeddings=positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
            **SPECIAL,
        )
    )


def t5(positions: int) -> PreTrainedModel:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=FEED_FORWARD,
            num_layers=3,
            num_heads=HEADS,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            tie_word_embeddings=True,
            decoder_start_token_id=0,
            attn_implementation="sdpa",
            **SPECIAL,
        )
    )


def bart(positions: int) -> PreTrainedModel:
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=4 * WIDTH,
            decoder_ffn_dim=4 * WIDTH,
            max_position_embeddings=positions,
            dropout=0.0,
            decoder_start_token_id=0,
            attn_implementation="sdpa",
            **SPECIAL,
        )
    )


@dataclass(frozen=True)
class Pair:
    """A native model, and the stack of ours that does its job in as many layers."""

    stack: str
    native: Callable[[int], PreTrainedModel]
    layers: int


PAIRS = {
    "llama": Pair("decoder", llama, 7),
    "bert": Pair("encoder", bert, 6),
    "t5": Pair("encoder-decoder", t5, 3),
    "bart": Pair("encoder-decoder", bart, 3),
}


def build(name: str, positions: int = ROW) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The native model and ours, with equal numbers of parameters to within one percent."""
    return build_native(name, positions), build_ours(name, positions)


def build_native(name: str, positions: int = ROW) -> PreTrainedModel:
    return PAIRS[name].native(positions)


def build_ours(name: str, positions: int = ROW) -> PreTrainedModel:
    """Our side of a pair: the package's default architecture with the native one's width and layers; the width of its
    feed-forward takes up the difference in parameters, in steps that matrix products run well."""
    pair = PAIRS[name]
    with torch.device("meta"):
        wanted = pair.native(positions).num_parameters()
        sizes = [_ours(pair, positions, width).num_parameters() for width in (512, 512 + STEP)]
    per_step = sizes[1] - sizes[0]
    ours = _ours(pair, positions, 512 + STEP * round((wanted - sizes[0]) / per_step))
    assert abs(ours.num_parameters() / wanted - 1) < 0.01, (ours.num_parameters(), wanted)
    return ours


BUILDERS = (build_native, build_ours)


def _ours(pair: Pair, positions: int, intermediate_size: int) -> PreTrainedModel:
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": pair.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": positions,
        **SPECIAL,
    }
    if pair.stack == "decoder":
        return hf_llm.LLMDecoderForCausalLM(hf_llm.LLMDecoderConfig(**fields))
    if pair.stack == "encoder":
        return hf_llm.LLMEncoderForMaskedLM(hf_llm.LLMEncoderConfig(**fields))
    config = hf_llm.LLMEncoderDecoderConfig(encoder=fields, decoder=dict(fields), decoder_start_token_id=0, **SPECIAL)
    return hf_llm.LLMEncoderDecoderForConditionalGeneration(config)
