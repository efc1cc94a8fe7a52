"""Attention on a CPU: rows of documents laid end to end, and a faster way to train in bfloat16.

The backward pass of torch's kernel for CPUs takes bfloat16 no faster than float32. Dense products of blocks, which
oneDNN runs near the processor's peak, take about a third of its time (4 rows of 512, 6 heads of 64, AVX-512 with
bfloat16). Shapes: B batch, H query heads, K key-value heads, Q query length, S key length, D head_dim.
"""

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward


BLOCK = 128  # queries at a time: their scores stay in the cache
KEPT_ELEMENTS = 2**23  # probabilities that one layer keeps for the backward pass (16 MB); more are computed again

Lengths = list[tuple[int, int]]  # numbers of queries and of keys of each segment


def _blocks(segments: Lengths, causal: bool) -> Iterator[tuple[slice, slice]]:
    """At most BLOCK queries of one segment, and the keys that they may see."""
    query_start = key_start = 0
    for queries, keys in segments:
        for start in range(0, queries, BLOCK):
            stop = min(start + BLOCK, queries)
            visible = stop if causal else keys
            yield slice(query_start + start, query_start + stop), slice(key_start, key_start + visible)
        query_start, key_start = query_start + queries, key_start + keys


def _heads(states: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(B, H, Q, D) -> (B * K, H / K * Q, D): the queries that share a head of keys, one below the other."""
    return states.reshape(states.shape[0] * key_heads, -1, states.shape[-1])


def _probabilities(query: torch.Tensor, key: torch.Tensor, length: int, causal: bool) -> torch.Tensor:
    """Softmax of the scores of a block of `length` queries (B * K, H / K * length, D) and keys (B * K, S, D)."""
    scores = torch.bmm(query, key.transpose(1, 2))
    if causal:
        later = torch.ones(length, length, dtype=torch.bool).triu_(1)
        scores.unflatten(1, (-1, length))[..., -length:].masked_fill_(later, float("-inf"))
    return torch.softmax(scores, -1)


class BlockwiseAttention(torch.autograd.Function):
    """softmax(query @ key^T * scaling) @ value, a block of queries at a time: query (B, H, Q, D), key and value
    (B, K, S, D) -> (B, Q, H, D).

    segments: lengths of what attends to itself alone, the same in every row. causal: each query sees the keys up to
    its own place in its segment, where both have the same length.
    """

    @staticmethod
    def forward(ctx, query, key, value, scaling, causal, segments):
        batch, heads, length, _ = query.shape
        key_heads = key.shape[1]
        keys, values = _heads(key * scaling, key_heads), _heads(value, key_heads)
        output = query.new_empty(batch, length, heads, value.shape[-1])
        kept, blocks = [], list(_blocks(segments, causal))
        rows = batch * heads
        keep = sum(rows * (q.stop - q.start) * (k.stop - k.start) for q, k in blocks) <= KEPT_ELEMENTS
        for q, k in blocks:
            weights = _probabilities(_heads(query[:, :, q], key_heads), keys[:, k], q.stop - q.start, causal)
            mixed = torch.bmm(weights, values[:, k])
            output[:, q] = mixed.view(batch, heads, q.stop - q.start, -1).transpose(1, 2)
            if keep:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, output, *kept)
        ctx.scaling, ctx.causal, ctx.blocks = scaling, causal, blocks
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, output, *kept = ctx.saved_tensors
        batch, heads, _, _ = query.shape
        key_heads = key.shape[1]
        keys, values = _heads(key * ctx.scaling, key_heads), _heads(value, key_heads)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros(states.shape, dtype=torch.float32) for states in (keys, values))
        # d scores = weights * (d weights - sum of weights * d weights), and the sum is that of d output * output
        mean = (grad_output.float() * output.float()).sum(-1, keepdim=True).to(query.dtype)  # (B, Q, H, 1)
        for i, (q, k) in enumerate(ctx.blocks):
            length = q.stop - q.start
            queries = _heads(query[:, :, q], key_heads)
            weights = kept[i] if kept else _probabilities(queries, keys[:, k], length, ctx.causal)
            grad = _heads(grad_output[:, q].transpose(1, 2), key_heads)
            grad_value[:, k] += torch.bmm(weights.transpose(1, 2), grad)
            grad_scores = torch.bmm(grad, values[:, k].transpose(1, 2))
            grad_scores.sub_(_heads(mean[:, q].transpose(1, 2), key_heads)).mul_(weights)
            grad_query[:, :, q] = torch.bmm(grad_scores, keys[:, k]).view(batch, heads, length, -1)
            grad_key[:, k] += torch.bmm(grad_scores.transpose(1, 2), queries)
        grad_key = (grad_key * ctx.scaling).to(key.dtype).view_as(key)
        return grad_query, grad_key, grad_value.to(value.dtype).view_as(value), None, None, None


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

    segment_lengths: numbers of queries and of keys of the segments of a single row; none sees another, and queries
    without keys get zeros. sliding_window: keys that a query of a segment sees, itself included, to either side where
    attention is not causal. (Without segments, windows are in the mask.)
    """
    segments = segment_lengths or [(query.shape[2], key.shape[2])]
    longest = max(keys for _, keys in segments)
    windowed = segment_lengths is not None and sliding_window is not None and longest > sliding_window
    square = all(queries == keys for queries, keys in segments)
    plain = attention_mask is None and kwargs.get("position_bias") is None and not dropout and not windowed
    trains = torch.is_grad_enabled() and query.dtype == torch.bfloat16 and query.requires_grad
    if plain and trains and (square or not is_causal):
        return BlockwiseAttention.apply(query, key, value, scaling, is_causal, segments), None
    kwargs |= {"scaling": scaling, "is_causal": is_causal, "dropout": dropout}
    if segment_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    query_lengths, key_lengths = zip(*segments, strict=True)
    for q, k, v in zip(query.split(query_lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2)):
        if not k.shape[2]:
            outputs.append(q.new_zeros(q.shape).transpose(1, 2))
        elif q.shape[2]:
            mask = _window(q, k, sliding_window, is_causal)
            outputs.append(sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _window(query: torch.Tensor, key: torch.Tensor, window: int | None, causal: bool) -> torch.BoolTensor | None:
    """Mask (1, 1, Q, S) of a segment that is longer than its window."""
    if window is None or key.shape[2] <= window:
        return None
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return mask.triu_(1 - window).tril_(0 if causal else window - 1)[None, None]
