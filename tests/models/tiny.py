"""Models and batches small enough that hundreds of them fit into a minute."""

import os

import pytest
import torch

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMEncoderConfig,
    LLMEncoderDecoderConfig,
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderForMaskedLM,
)


with_backends = pytest.mark.skipif(os.environ.get("HF_LLM_BACKENDS") == "none", reason="HF_LLM_BACKENDS=none")

STACKS = ("decoder", "encoder", "encoder_decoder")
VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS = {
    "decoder": LLMDecoderForCausalLM,
    "encoder": LLMEncoderForMaskedLM,
    "encoder_decoder": LLMEncoderDecoderForConditionalGeneration,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def tiny_config(stack: str, attn_implementation: str | None = None, **fields):
    """A configuration of one stack; for an encoder-decoder, `fields` go to both halves."""
    fields = {**SIZES, **fields}
    if stack == "decoder":
        return LLMDecoderConfig(**fields, attn_implementation=attn_implementation)
    if stack == "encoder":
        return LLMEncoderConfig(**fields, attn_implementation=attn_implementation)
    return LLMEncoderDecoderConfig(
        encoder=dict(fields),
        decoder=dict(fields),
        tie_word_embeddings=fields.get("tie_word_embeddings", True),
        pad_token_id=0,
        decoder_start_token_id=1,
        attn_implementation=attn_implementation,
    )


def redraw(model: torch.nn.Module, seed: int = 0, std: float = 0.15) -> torch.nn.Module:
    """Draw every parameter anew, also those that start at zero or one, so that each of them shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            if parameter.ndim == 1:  # norms, mostly
                parameter.add_(0.5)
    return model


def tiny_model(stack: str, attn_implementation: str | None = None, seed: int = 0, **fields) -> torch.nn.Module:
    """A language model in eval mode, with the same random parameters for the same `seed`, whatever the backend."""
    return redraw(MODELS[stack](tiny_config(stack, attn_implementation, **fields)), seed).eval()


def tokens(*shape: int, seed: int = 0) -> torch.LongTensor:
    """Random ids that are no special tokens."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(stack: str, batch: int = 2, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch without padding."""
    inputs = {"input_ids": tokens(batch, length, seed=seed)}
    if stack == "encoder_decoder":
        inputs["decoder_input_ids"] = tokens(batch, length - 2, seed=seed + 1)
    return inputs


# -- packed batches ---------------------------------------------------------------------------------------------------


def documents_of(lengths: list[list[int]], row_length: int) -> torch.LongTensor:
    """Document ids (rows, row_length) of documents with these lengths, -1 at the end of each row."""
    ids = torch.full((len(lengths), row_length), -1)
    for row, row_lengths in zip(ids, lengths):
        filled = torch.repeat_interleave(torch.arange(len(row_lengths)), torch.tensor(row_lengths))
        row[: len(filled)] = filled
    return ids


def positions_of(document_ids: torch.LongTensor) -> torch.LongTensor:
    """Positions that start again in each document, 0 at padding."""
    positions = torch.zeros_like(document_ids)
    for row, ids in zip(positions, document_ids):
        for document in ids[ids >= 0].unique():
            row[ids == document] = torch.arange(int((ids == document).sum()))
    return positions


def _half(lengths, row_length, seed):
    document_ids = documents_of(lengths, row_length)
    input_ids = tokens(*document_ids.shape, seed=seed).masked_fill(document_ids < 0, 0)
    return input_ids, positions_of(document_ids), document_ids


def packed_batch(
    stack: str, lengths=((4, 3, 5), (6, 5)), target_lengths=((3, 5, 2), (2, 6)), padding: int = 2, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Packed documents in the format that `hf_llm.data` gives to the models, labels included."""
    input_ids, position_ids, document_ids = _half(lengths, max(map(sum, lengths)) + padding, seed)
    batch = {"input_ids": input_ids, "position_ids": position_ids, "document_ids": document_ids}
    if stack == "decoder":
        batch["labels"] = input_ids.masked_fill((document_ids < 0) | (position_ids == 0), -100)
    elif stack == "encoder":
        chosen = (tokens(*input_ids.shape, seed=seed + 7) % 3 == 0) & (document_ids >= 0)
        batch["labels"] = tokens(*input_ids.shape, seed=seed + 8).masked_fill(~chosen, -100)
    else:
        ids, positions, documents = _half(target_lengths, max(map(sum, target_lengths)) + padding, seed + 1)
        batch |= {
            "decoder_input_ids": ids.masked_fill((positions == 0) & (documents >= 0), 1),
            "decoder_position_ids": positions,
            "decoder_document_ids": documents,
            "labels": tokens(*ids.shape, seed=seed + 9).masked_fill(documents < 0, -100),
        }
    return batch


def alone(batch: dict[str, torch.Tensor], row: int, document: int) -> dict[str, torch.Tensor]:
    """One document of a packed batch as a batch of its own, without anything that speaks of packing."""
    masks = {"": batch["document_ids"][row] == document}
    if "decoder_document_ids" in batch:
        masks["decoder_"] = batch["decoder_document_ids"][row] == document
    target = masks.get("decoder_", masks[""])
    single = {f"{half}input_ids": batch[f"{half}input_ids"][row, mask][None] for half, mask in masks.items()}
    return {**single, "labels": batch["labels"][row, target][None]}


def target_documents(batch: dict[str, torch.Tensor]) -> torch.LongTensor:
    """Document ids of the tokens that have logits."""
    return batch.get("decoder_document_ids", batch["document_ids"])


def logits_of(model: torch.nn.Module, batch: dict[str, torch.Tensor], **kwargs) -> torch.Tensor:
    """Logits (batch, seq, vocabulary) without gradients."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return model(**inputs, **kwargs).logits
