"""Rows without padding: documents laid end to end, with their lengths beside them.

transformers finds packed documents for flash attention by itself only in a single row without a mask; here the lengths
are made once for all layers, for any batch, for self-attention and cross-attention. Flash attention takes them as they
are, and so does attention on a CPU, where it costs the squares of the documents' lengths, not that of the row's.
"""

import torch
from torch.nn import functional as F

from .operators import is_transformed, values_are_known


def is_flash(config) -> bool:
    """Whether the configured backend is a flavour of flash attention."""
    return "flash" in (config._attn_implementation or "")


def runs_cpu_attention(backend: str, states: torch.Tensor) -> bool:
    """Whether sdpa is that of `cpu_attention`."""
    on_cpu = backend == "sdpa" and states.device.type == "cpu"
    return on_cpu and not (torch.jit.is_tracing() or torch.compiler.is_exporting() or is_transformed())


def takes_lengths(config, states: torch.Tensor) -> bool:
    """Whether attention takes the lengths of documents, which `cpu_attention` does, but not in a graph, which would be
    compiled again for every set of them."""
    return runs_cpu_attention(config._attn_implementation, states) and values_are_known()


def real_documents(documents: torch.LongTensor | None, attention_mask) -> torch.LongTensor | None:
    """Document ids with -1 at padding, or `None` if there is neither padding nor packing."""
    padded = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 and not bool(attention_mask.all())
    if not padded:
        return documents
    real = attention_mask.bool()
    return torch.where(real, 0 if documents is None else documents, -1)


def row_documents(documents: torch.LongTensor, stride: int | None = None) -> torch.LongTensor:
    """Document ids that differ between rows as well (by `stride`), for rows that become one."""
    rows = torch.arange(documents.shape[0], device=documents.device)[:, None]
    return documents + rows * (int(documents.max()) + 1 if stride is None else stride)


def unpad(documents: torch.LongTensor, *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Rows (batch, seq, ...) -> one row (1, tokens, ...) of the tokens whose document id is not -1."""
    real = (documents >= 0).flatten().nonzero()[:, 0]
    rows = (None if t is None else t.expand(*documents.shape, *t.shape[2:]).flatten(0, 1) for t in tensors)
    return [None if row is None else row.index_select(0, real)[None] for row in rows]


def repad(documents: torch.LongTensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpad` for one tensor; padding becomes zero."""
    real = (documents >= 0).flatten().nonzero()[:, 0]
    padded = hidden_states.new_zeros(documents.numel(), hidden_states.shape[-1])
    return padded.index_copy(0, real, hidden_states[0]).view(*documents.shape, -1)


def segment_ids(document_ids: torch.LongTensor, stride: int) -> torch.LongTensor:
    """A number for each document of each row, growing along the flattened (batch * seq) axis, equal for equal
    documents of two tensors: 2 * id + 1 for a document, an even one for the padding before or after it."""
    padding = 2 * (document_ids.cummax(-1).values + 1)
    ids = torch.where(document_ids >= 0, 2 * document_ids + 1, padding)
    rows = torch.arange(ids.shape[0], device=ids.device)[:, None]
    return ids + rows * stride


def length_arguments(config, query_segments: torch.LongTensor, key_segments: torch.LongTensor) -> dict:
    """What attention needs for segments of different lengths, numbered along either side; a segment that only one side
    has gets length 0 on the other.

    `cu_seq_lens_{q,k}` (segments + 1,) int32 and `max_length_{q,k}` for flash attention; `segment_lengths`, pairs of
    numbers, for sdpa.
    """
    count = int(torch.maximum(query_segments.max(), key_segments.max())) + 1
    queries, keys = (torch.bincount(segments, minlength=count) for segments in (query_segments, key_segments))
    used = (queries + keys) > 0
    queries, keys = queries[used], keys[used]
    if not is_flash(config):
        return {"segment_lengths": tuple(zip(queries.tolist(), keys.tolist(), strict=True))}
    arguments = {}
    for side, length in (("q", queries), ("k", keys)):
        arguments[f"cu_seq_lens_{side}"] = F.pad(length.cumsum(0), (1, 0)).to(torch.int32)
        arguments[f"max_length_{side}"] = int(length.max())
    return arguments


def padded_length_arguments(config, query_documents: torch.LongTensor, key_documents: torch.LongTensor) -> dict:
    """Lengths for rows (batch, seq) that keep their padding: each stretch of padding is a segment of its own."""
    stride = 2 * int(max(query_documents.max(), key_documents.max())) + 4
    return length_arguments(
        config, segment_ids(query_documents, stride).flatten(), segment_ids(key_documents, stride).flatten()
    )


def unpadded_cross(
    config, documents: torch.LongTensor, encoder_documents: torch.LongTensor, encoder_hidden_states: torch.Tensor
) -> tuple[torch.Tensor, dict]:
    """Encoder states (1, tokens, width) without padding, and the lengths for unpadded queries of `documents`."""
    stride = int(max(documents.max(), encoder_documents.max())) + 1
    segments = [row_documents(ids, stride)[ids >= 0] for ids in (documents, encoder_documents)]
    (states,) = unpad(encoder_documents, encoder_hidden_states)
    return states, length_arguments(config, *segments)
