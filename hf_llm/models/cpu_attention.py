"""Attention on a CPU: rows of documents laid end to end, and a faster way to train in bfloat16.

A block of queries is multiplied with the keys of the documents that they are of, and what does not belong together is
hidden: the work grows with the squares of the documents' lengths, not of the rows', and short documents share a block.
The backward pass of torch's kernel for CPUs takes bfloat16 no faster than float32; dense products of blocks, which
oneDNN runs near the processor's peak, take about half of its time where attention is causal (4 rows of 512, 6 heads of
64, two cores with AVX-512 for bfloat16).

Shapes: B batch, H query heads, K key-value heads, Q query length, S key length, D head_dim.
"""

import functools
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .precision import cast_once


BLOCK = 128  # queries at a time: their scores stay in the cache
KEPT_ELEMENTS = 2**23  # probabilities that one layer keeps for the backward pass (16 MB); more are computed again

Lengths = tuple[tuple[int, int], ...]  # numbers of queries and of keys of each segment


@dataclass(frozen=True)
class Block:
    """At most BLOCK queries, of one segment or of several, and the keys that they may see.

    Attributes:
        query, key: places along the row.
        hidden: bool, True where a query must not see a key, (queries, last keys): the keys before these are seen by
            all. `None` where every query sees every key.
        blind: whether a query sees no key at all.
    """

    query: slice
    key: slice
    hidden: torch.BoolTensor | None
    blind: bool

    @property
    def size(self) -> int:
        return (self.query.stop - self.query.start) * (self.key.stop - self.key.start)


@functools.lru_cache(maxsize=16)  # the layers of a model ask for the same
def make_blocks(segments: Lengths, causal: bool, window: int | None = None) -> list[Block]:
    """The blocks of a row of segments, none of which sees another. causal: a query sees the keys up to its own place
    in its segment; window: that many, itself included, to either side where attention is not causal."""
    sides = [torch.tensor(side) for side in zip(*segments, strict=True)]
    numbers = [torch.arange(len(segments)).repeat_interleave(side) for side in sides]
    places = [torch.arange(len(number)) - (side.cumsum(0) - side)[number] for number, side in zip(numbers, sides)]
    ends = sides[1].cumsum(0).tolist()
    blocks = []
    for start in range(0, len(numbers[0]), BLOCK):
        query = slice(start, min(start + BLOCK, len(numbers[0])))
        first, last = int(numbers[0][query.start]), int(numbers[0][query.stop - 1])
        key = slice(ends[first] - segments[first][1], ends[last])
        if causal:
            key = slice(key.start, min(key.stop, ends[last] - segments[last][1] + int(places[0][query.stop - 1]) + 1))
        if window is not None and first == last:
            key = slice(max(key.start, key.start + int(places[0][query.start]) - window + 1), key.stop)
        hidden = numbers[0][query, None] != numbers[1][key]
        distance = places[0][query, None] - places[1][key]
        if causal:
            hidden |= distance < 0
        if window is not None:
            hidden |= distance.abs() >= window
        blind = bool(hidden.all(1).any())
        columns = hidden.any(0).nonzero()
        blocks.append(Block(query, key, hidden[:, int(columns[0]) :] if len(columns) else None, blind))
    return blocks


def _heads(states: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(B, H, Q, D) -> (B * K, H / K * Q, D): the queries that share a head of keys, one below the other."""
    return states.reshape(states.shape[0] * key_heads, -1, states.shape[-1])


def _probabilities(query: torch.Tensor, key: torch.Tensor, block: Block) -> torch.Tensor:
    """Softmax of the scores of queries (B * K, H / K * Q, D) and keys (B * K, S, D) of a block."""
    scores = torch.bmm(query, key.transpose(1, 2))
    if block.hidden is None:
        return torch.softmax(scores, -1)
    queries, keys = block.hidden.shape
    scores.unflatten(1, (-1, queries))[..., -keys:].masked_fill_(block.hidden, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1)
    if block.blind:
        weights.unflatten(1, (-1, queries))[..., -keys:].masked_fill_(block.hidden, 0.0)
    return weights


class BlockwiseAttention(torch.autograd.Function):
    """softmax(query @ key^T * scaling) @ value, a block of queries at a time: query (B, H, Q, D), key and value
    (B, K, S, D) -> (B, Q, H, D). blocks: those of every row."""

    @staticmethod
    def forward(ctx, query, key, value, scaling, blocks):
        batch, heads, length, _ = query.shape
        key_heads = key.shape[1]
        keys, values = _heads(key * scaling, key_heads), _heads(value, key_heads)
        output = query.new_empty(batch, length, heads, value.shape[-1])
        keep, kept = batch * heads * sum(block.size for block in blocks) <= KEPT_ELEMENTS, []
        for block in blocks:
            weights = _probabilities(_heads(query[:, :, block.query], key_heads), keys[:, block.key], block)
            mixed = torch.bmm(weights, values[:, block.key])
            output[:, block.query] = mixed.view(batch, heads, -1, value.shape[-1]).transpose(1, 2)
            if keep:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scaling, ctx.blocks = scaling, blocks
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, *kept = ctx.saved_tensors
        batch, heads, _, width = query.shape
        key_heads = key.shape[1]
        keys, values = _heads(key * ctx.scaling, key_heads), _heads(value, key_heads)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros(states.shape, dtype=torch.float32) for states in (keys, values))
        for i, block in enumerate(ctx.blocks):
            q, k = block.query, block.key
            queries = _heads(query[:, :, q], key_heads)
            weights = kept[i] if kept else _probabilities(queries, keys[:, k], block)
            grad = _heads(grad_output[:, q].transpose(1, 2), key_heads)
            grad_value[:, k] += torch.bmm(weights.transpose(1, 2), grad)
            grad_weights = torch.bmm(grad, values[:, k].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_query[:, :, q] = torch.bmm(grad_scores, keys[:, k]).view(batch, heads, -1, width)
            grad_key[:, k] += torch.bmm(grad_scores.transpose(1, 2), queries)
        grad_key = (grad_key * ctx.scaling).to(key.dtype).view_as(key)
        return grad_query, grad_key, grad_value.to(value.dtype).view_as(value), None, None


def cpu_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float,
    is_causal: bool,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segment_lengths: Lengths | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """What transformers' sdpa does, on a CPU: query (B, H, Q, D), key and value (B, K, S, D) -> (B, Q, H, D).

    segment_lengths: numbers of queries and of keys of the segments of a row; none sees another, and queries without
    keys get zeros. sliding_window: see `make_blocks`; without segments, windows are in the mask.
    """
    query, key, value = (cast_once(states) for states in (query, key, value))
    trains = torch.is_grad_enabled() and query.dtype == torch.bfloat16 and query.requires_grad and not dropout
    if segment_lengths is None:
        plain = attention_mask is None and kwargs.get("position_bias") is None
        if not (trains and plain and (query.shape[2] == key.shape[2] or not is_causal)):
            kwargs |= {"scaling": scaling, "is_causal": is_causal, "dropout": dropout}
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        segment_lengths, sliding_window = ((query.shape[2], key.shape[2]),), None
    blocks = make_blocks(segment_lengths, is_causal, sliding_window)
    if trains:
        return BlockwiseAttention.apply(query, key, value, scaling, blocks), None
    outputs = []
    for block in blocks:
        mask = None
        if block.hidden is not None:
            before = block.key.stop - block.key.start - block.hidden.shape[1]
            mask = ~F.pad(block.hidden, (before, 0))[None, None]
        states = query[:, :, block.query], key[:, :, block.key], value[:, :, block.key]
        output, _ = sdpa_attention_forward(
            module, *states, mask, scaling=scaling, is_causal=False, dropout=dropout, **kwargs
        )
        outputs.append(output.masked_fill(~mask.any(-1)[0, ..., None, None], 0.0) if block.blind else output)
    return torch.cat(outputs, dim=1), None
