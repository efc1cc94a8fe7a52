"""Which token sees which, in the form that each attention backend wants.

Masks are made by transformers' own mask interface (bool for sdpa, additive for eager, BlockMask for flex, 2-D for
flash) from index rules: causal or bidirectional, windowed, within a document, and not padding. One builder serves
self-attention and cross-attention.
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from .operators import is_transformed
from .packing import is_flash, length_arguments, padded_length_arguments, real_documents


@dataclass
class AttentionInputs:
    """What the layers of one layer type attend with: mask, bias, and keywords for the backend."""

    mask: object = None
    bias: torch.Tensor | None = None
    distance: torch.LongTensor | None = None
    keywords: dict = field(default_factory=dict)


def _same_document(query_documents: torch.LongTensor, key_documents: torch.LongTensor):
    def rule(batch_idx, head_idx, q_idx, kv_idx):
        return query_documents[batch_idx, q_idx] == key_documents[batch_idx, kv_idx]

    return rule


def _window_rule(causal: bool, window: int | None):
    if window is None:
        return causal_mask_function if causal else bidirectional_mask_function
    make = sliding_window_causal_mask_function if causal else sliding_window_bidirectional_mask_function
    return make(window)


def make_mask(
    config,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    causal: bool,
    kv_length: int,
    window: int | None = None,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    query_documents: torch.LongTensor | None = None,
    key_documents: torch.LongTensor | None = None,
    may_skip: bool = True,
):
    """The mask of one kind of layer for the configured backend.

    attention_mask: `None`, or (batch, kv) with zeros at padding; one that is made already (4-D, BlockMask) is returned
    as it is. query_documents, key_documents: (batch, total) document ids, indexed absolutely, or `None`.
    may_skip: whether `None` may stand for a plain mask that the backend applies by itself.
    """
    if attention_mask is not None and getattr(attention_mask, "ndim", len(attention_mask.shape)) == 4:
        return attention_mask
    if config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
        return None
    batch, q_length = inputs_embeds.shape[:2]
    device = inputs_embeds.device
    if attention_mask is not None:
        attention_mask = attention_mask.to(device=device, dtype=torch.bool)
    rule = _window_rule(causal, window)
    if query_documents is not None:
        missing = kv_length + kv_offset - key_documents.shape[-1]
        if missing > 0:  # a static cache is longer than what has been seen
            key_documents = F.pad(key_documents, (0, missing), value=-2)
        rule = and_masks(_same_document(query_documents, key_documents), rule)
        may_skip = False
    may_skip = may_skip and not is_transformed()  # it would look for padding
    return ALL_MASK_ATTENTION_FUNCTIONS[config._attn_implementation](
        batch_size=batch,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=rule,
        attention_mask=attention_mask,
        local_size=window,
        allow_is_causal_skip=may_skip and causal,
        allow_is_bidirectional_skip=may_skip and not causal,
        dtype=inputs_embeds.dtype,
        config=config,
        device=device,
    )


def self_attention_inputs(
    config,
    inputs_embeds: torch.Tensor,
    attention_mask,
    past_key_values: Cache | None,
    documents: torch.LongTensor | None,
    causal: bool,
    position_bias: torch.nn.Module | None,
    unpadded: bool = False,
) -> dict[str, AttentionInputs]:
    """For each layer type of the configuration, what its layers attend with.

    documents: (batch, past + seq) from `resolve_documents`. position_bias: ALiBi or the shared relative bias; it is
    folded into the mask once for all layers where the backend adds masks (eager, sdpa), and passed on otherwise.
    unpadded: the input is one row of documents without padding, which attention takes by their lengths.
    """
    if unpadded:
        keywords = length_arguments(config, documents[0], documents[0])
        return dict.fromkeys(config.layer_types, AttentionInputs(keywords=keywords))
    batch, q_length = inputs_embeds.shape[:2]
    per_layer_bias = config.relative_attention_bias_per_layer
    inputs = {}
    for layer_type in dict.fromkeys(config.layer_types):
        window = config.sliding_window if layer_type == "sliding_attention" else None
        mask = attention_mask.get(layer_type) if isinstance(attention_mask, dict) else attention_mask
        q_offset, kv_offset, kv_length = 0, 0, q_length
        if past_key_values is not None:
            first = config.layer_types.index(layer_type)
            q_offset = past_key_values.get_query_offset(first)
            kv_length, kv_offset = past_key_values.get_mask_sizes(q_length, first)
            if isinstance(q_offset, torch.Tensor):
                q_offset = q_offset.to(inputs_embeds.device)
        elif isinstance(mask, torch.Tensor) and mask.ndim == 2:
            kv_length = mask.shape[-1]
        compiled_decoding = getattr(past_key_values, "is_compileable", False) and q_length == 1
        biased = position_bias is not None or per_layer_bias
        made = make_mask(
            config,
            inputs_embeds,
            mask,
            causal=causal,
            kv_length=kv_length,
            window=window,
            q_offset=q_offset,
            kv_offset=kv_offset,
            query_documents=documents,
            key_documents=documents,
            may_skip=not compiled_decoding and not biased,
        )
        entry = AttentionInputs(mask=made)
        if biased:
            device = inputs_embeds.device
            keys = torch.arange(kv_length, device=device) + kv_offset
            queries = torch.arange(q_length, device=device) + q_offset
            entry.distance = keys[None, :] - queries[:, None]  # (q_len, kv_len)
        if position_bias is not None:
            bias = position_bias(entry.distance, _key_positions(mask, kv_offset + kv_length, device)[:, kv_offset:])
            _add_bias(entry, bias.to(inputs_embeds.dtype), batch)
        if documents is not None and is_flash(config):
            real = real_documents(documents, mask)
            missing = kv_offset + kv_length - real.shape[-1]
            keys = F.pad(real, (0, missing), value=-1) if missing > 0 else real  # a static cache is longer than that
            entry.mask = None
            visible = keys[:, kv_offset : kv_offset + kv_length]
            entry.keywords = padded_length_arguments(config, real[:, -q_length:], visible)
        inputs[layer_type] = entry
    return inputs


def _key_positions(mask, length: int, device: torch.device) -> torch.LongTensor:
    """Positions (batch or 1, length) of all keys so far. Where a mask tells which are real, these are counted: the
    ones of a 2-D mask, those that the last query sees in a 4-D mask."""
    if not isinstance(mask, torch.Tensor):
        return torch.arange(length, device=device)[None]
    if mask.ndim == 4:
        mask = mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] == 0
    real = F.pad(mask.long(), (0, length - mask.shape[-1]))  # a static cache is longer than what has been seen
    return (real.cumsum(-1) - 1) * real


def cross_attention_inputs(
    config,
    inputs_embeds: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor | None,
    documents: torch.LongTensor | None,
    encoder_documents: torch.LongTensor | None,
    q_offset: int | torch.Tensor = 0,
) -> AttentionInputs:
    """What a decoder's layers attend to the encoder's output with."""
    kv_length = encoder_hidden_states.shape[1]
    if documents is None and encoder_documents is not None:  # one document, and padding in the source
        documents = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        q_offset = 0
    if is_flash(config):
        # it would unpad queries by the keys' mask, which is wrong between two sequences: give it both lengths instead
        encoder_documents = real_documents(encoder_documents, encoder_attention_mask)
        if encoder_documents is None:
            return AttentionInputs()
        if documents is None:
            documents = encoder_documents.new_zeros(inputs_embeds.shape[:2])
        documents = documents[:, -inputs_embeds.shape[1] :]
        return AttentionInputs(keywords=padded_length_arguments(config, documents, encoder_documents))
    mask = make_mask(
        config,
        inputs_embeds,
        encoder_attention_mask,
        causal=False,
        kv_length=kv_length,
        q_offset=q_offset if documents is not None else 0,
        query_documents=documents,
        key_documents=encoder_documents,
    )
    return AttentionInputs(mask=mask)


def _add_bias(entry: AttentionInputs, bias: torch.Tensor, batch: int) -> None:
    """Fold `bias` (1, heads, q, kv) into an additive or boolean mask, or keep it apart (flex, paged)."""
    mask = entry.mask
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        entry.bias = bias.expand(batch, -1, -1, -1)
    elif mask.dtype == torch.bool:
        entry.mask = torch.where(mask, bias, torch.finfo(bias.dtype).min)
    else:
        entry.mask = mask + bias
