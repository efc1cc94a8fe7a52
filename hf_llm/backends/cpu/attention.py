"""Attention on a CPU: rows of documents laid end to end, and a faster way to train in bfloat16.

A block of queries is multiplied with the keys of the documents that they are of, and what does not belong together is
hidden: the work grows with the squares of the documents' lengths, not of the rows', and short documents share a block.
The backward pass of torch's kernel for CPUs takes bfloat16 no faster than float32; dense products of blocks, which
oneDNN runs near the processor's peak, take about half of its time where attention is causal (4 rows of 512, 6 heads of
64, two cores with AVX-512 for bfloat16).

Shapes: B batch, H query heads, K key-value heads, Q query length, S key length, D head_dim.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_torchdynamo_compiling

from hf_llm.models.operators import cast_once, is_transformed, values_are_known
from hf_llm.models.visibility import TakesLengths


BLOCK = 128  # queries at a time: their scores stay in the cache, and few of them are hidden
OPEN_BLOCK = 256  # where none are
KEPT_ELEMENTS = 2**23  # probabilities that one layer keeps for the backward pass (16 MB); more are computed again

Lengths = tuple[tuple[int, int], ...]  # numbers of queries and of keys of each segment


@dataclass(frozen=True)
class Block:
    """At most BLOCK (or OPEN_BLOCK) queries, of one segment or of several, and the keys that they may see.

    Attributes:
        query, key: places along the row.
        hidden: bool, True where a query must not see a key, (queries, last keys): the keys before these are seen by
            all. `None` where every query sees every key.
        blind: whether a query sees none of the keys that there are.
    """

    query: slice
    key: slice
    hidden: torch.BoolTensor | None
    blind: bool


@functools.lru_cache(maxsize=16)
def make_spans(segments: Lengths, causal: bool, window: int | None = None) -> list[tuple[slice, slice]]:
    """Places of the queries and of the keys of each block; see `make_blocks`."""
    query_ends, key_ends = (list(itertools.accumulate(side)) for side in zip(*segments, strict=True))
    size = BLOCK if causal or window is not None or len(segments) > 1 else OPEN_BLOCK
    spans = []
    for start in range(0, query_ends[-1], size):
        stop = min(start + size, query_ends[-1])
        first, last = bisect.bisect_right(query_ends, start), bisect.bisect_right(query_ends, stop - 1)
        key_start, key_stop = key_ends[first] - segments[first][1], key_ends[last]
        if causal:
            place = stop - 1 - (query_ends[last] - segments[last][0])
            key_stop = min(key_stop, key_stop - segments[last][1] + place + 1)
        if window is not None and first == last:
            place = start - (query_ends[first] - segments[first][0])
            key_start = max(key_start, key_start + place - window + 1)
        spans.append((slice(start, stop), slice(key_start, key_stop)))
    return spans


@functools.lru_cache(maxsize=16)  # the layers of a model ask for the same
def make_blocks(segments: Lengths, causal: bool, window: int | None = None) -> list[Block]:
    """The blocks of a row of segments, none of which sees another. causal: a query sees the keys up to its own place
    in its segment; window: that many, itself included, to either side where attention is not causal."""
    sides = [torch.tensor(side) for side in zip(*segments, strict=True)]
    numbers = [torch.arange(len(segments)).repeat_interleave(side) for side in sides]
    places = [torch.arange(len(number)) - (side.cumsum(0) - side)[number] for number, side in zip(numbers, sides)]
    blocks = []
    for query, key in make_spans(segments, causal, window):
        hidden = numbers[0][query, None] != numbers[1][key]
        distance = places[0][query, None] - places[1][key]
        if causal:
            hidden |= distance < 0
        if window is not None:
            hidden |= distance.abs() >= window
        columns = hidden.any(0).nonzero()
        if not len(columns):  # every query sees every key, of which there may be none
            blocks.append(Block(query, key, None, blind=False))
            continue
        blocks.append(Block(query, key, hidden[:, int(columns[0]) :], blind=bool(hidden.all(1).any())))
    return blocks


def _pairs(flat: Sequence[int]) -> Lengths:
    return tuple((int(queries), int(keys)) for queries, keys in zip(flat[::2], flat[1::2], strict=True))


def _largest(query: torch.Tensor, *options) -> int:
    """Number of probabilities of the largest block."""
    sizes = ((q.stop - q.start) * (k.stop - k.start) for q, k in make_spans(*options))
    return query.shape[0] * query.shape[1] * max(sizes, default=0)


def _kept(query: torch.Tensor, segments: Sequence[int], causal: bool, window: int | None) -> int:
    """Number of probabilities that the backward pass is given. Of a single segment by a formula: a compiler may have
    symbols for its lengths, and would make a graph for each pair of numbers that is looked at."""
    if len(segments) == 2 and window is None and (not causal or segments[0] == segments[1]):
        queries, keys = segments
        whole, rest = queries // BLOCK, queries % BLOCK
        pairs = BLOCK * BLOCK * (whole * (whole + 1) // 2) + rest * queries if causal else queries * keys
    else:
        spans = make_spans(_pairs(segments), causal, window)
        pairs = sum((q.stop - q.start) * (k.stop - k.start) for q, k in spans)
    elements = query.shape[0] * query.shape[1] * pairs
    return elements if elements <= KEPT_ELEMENTS else 0


def _heads(states: torch.Tensor, key_heads: int) -> torch.Tensor:
    """(B, H, Q, D) -> (B * K, H / K * Q, D): the queries that share a head of keys, one below the other."""
    return states.reshape(states.shape[0] * key_heads, -1, states.shape[-1])


def _part(buffer: torch.Tensor, start: int, queries: torch.Tensor, key_length: int) -> torch.Tensor:
    """A place for the scores (B * K, H / K * Q, S) of queries (B * K, H / K * Q, D) in a flat buffer."""
    shape = (*queries.shape[:2], key_length)
    return buffer[start : start + math.prod(shape)].view(shape)


def _probabilities(
    query: torch.Tensor, key: torch.Tensor, block: Block, scores: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Softmax of the scores of queries (B * K, H / K * Q, D) and keys (B * K, S, D) of a block, written to `weights`
    by way of `scores`."""
    torch.bmm(query, key.transpose(1, 2), out=scores)
    if block.hidden is not None:
        queries, keys = block.hidden.shape
        scores.unflatten(1, (-1, queries))[..., -keys:].masked_fill_(block.hidden, torch.finfo(scores.dtype).min)
    torch.softmax(scores, -1, out=weights)
    if block.blind:
        weights.unflatten(1, (-1, queries))[..., -keys:].masked_fill_(block.hidden, 0.0)
    return weights


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    segments: Sequence[int],
    causal: bool,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, _ = query.shape
    key_heads = key.shape[1]
    options = _pairs(segments), causal, window
    keys, values = _heads(key * scaling, key_heads), _heads(value, key_heads)
    output = query.new_empty(batch, length, heads, value.shape[-1])
    # every block uses the same memory: on a CPU, pages that are new cost more than what is written to them
    kept = query.new_empty(_kept(query, segments, causal, window))
    scratch = query.new_empty(2, _largest(query, *options))
    place = 0
    for block in make_blocks(*options):
        queries, size = _heads(query[:, :, block.query], key_heads), block.key.stop - block.key.start
        weights = _part(kept, place, queries, size) if len(kept) else _part(scratch[1], 0, queries, size)
        _probabilities(queries, keys[:, block.key], block, _part(scratch[0], 0, queries, size), weights)
        place += weights.numel()
        mixed = torch.bmm(weights, values[:, block.key])
        output[:, block.query] = mixed.view(batch, heads, -1, value.shape[-1]).transpose(1, 2)
    return output, kept


def _backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    scaling: float,
    segments: Sequence[int],
    causal: bool,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, _, width = query.shape
    key_heads = key.shape[1]
    options = _pairs(segments), causal, window
    keys, values = _heads(key * scaling, key_heads), _heads(value, key_heads)
    grad_query = torch.empty_like(query)
    grad_key, grad_value = (torch.zeros(states.shape, dtype=torch.float32) for states in (keys, values))
    scratch = query.new_empty(3, _largest(query, *options))
    place = 0
    for block in make_blocks(*options):
        q, k = block.query, block.key
        queries, grad = _heads(query[:, :, q], key_heads), _heads(grad_output[:, q].transpose(1, 2), key_heads)
        grad_weights, grad_scores, weights = (_part(buffer, 0, queries, k.stop - k.start) for buffer in scratch)
        if len(kept):
            weights = _part(kept, place, queries, k.stop - k.start)
            place += weights.numel()
        else:
            _probabilities(queries, keys[:, k], block, grad_scores, weights)
        grad_value[:, k] += torch.bmm(weights.transpose(1, 2), grad)
        torch.bmm(grad, values[:, k].transpose(1, 2), out=grad_weights)
        torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype, grad_input=grad_scores)
        grad_query[:, :, q] = torch.bmm(grad_scores, keys[:, k]).view(batch, heads, -1, width)
        grad_key[:, k] += torch.bmm(grad_scores.transpose(1, 2), queries)
    grad_key = (grad_key * scaling).to(key.dtype).view(key.shape)
    return grad_query, grad_key, grad_value.to(value.dtype).view(value.shape)


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, *options):
        output, kept = _forward(query, key, value, *options)
        ctx.save_for_backward(query, key, value, kept)
        ctx.options = options
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        return *_backward(grad_output, *ctx.saved_tensors, *ctx.options), None, None, None, None


# The same in a graph; outside of one, an operator's own way through torch costs as much as a few kernels.
_operator, _backward_operator = (
    torch.library.custom_op(f"hf_llm::{name}", function, mutates_args=(), device_types="cpu")
    for name, function in (("blockwise_attention", _forward), ("blockwise_attention_backward", _backward))
)


@_operator.register_fake
def _(query, key, value, scaling, segments, causal, window):
    batch, heads, length, _ = query.shape
    kept = query.new_empty(_kept(query, segments, causal, window))
    return query.new_empty(batch, length, heads, value.shape[-1]), kept


@_backward_operator.register_fake
def _(grad_output, query, key, value, *_):
    return torch.empty_like(query), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx, inputs, output):
    query, key, value, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_output, _):
    return *_backward_operator(grad_output, *ctx.saved_tensors, *ctx.options), None, None, None, None


_operator.register_autograd(_differentiate, setup_context=_save)


def blockwise_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    segments: Lengths,
    causal: bool,
    window: int | None = None,
) -> torch.Tensor:
    """softmax(query @ key^T * scaling) @ value, a block of queries at a time: query (B, H, Q, D), key and value
    (B, K, S, D) -> (B, Q, H, D). segments, causal, window: those of `make_blocks`, the same for every row."""
    flat = [length for segment in segments for length in segment]
    if is_torchdynamo_compiling():
        return _operator(query, key, value, scaling, flat, causal, window)[0]
    return _BlockwiseAttention.apply(query, key, value, scaling, flat, causal, window)


def attend_to_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """A single query (B, H, 1, D) sees all keys: the heads that share keys stand one after the other like queries, so
    that keys and values need not be repeated. transformers does so for masks in eager mode."""
    batch, heads, _, width = query.shape
    shape = (batch, key.shape[1], heads // key.shape[1])
    if attention_mask is not None and attention_mask.shape[1] > 1:
        attention_mask = attention_mask.expand(batch, -1, -1, -1).reshape(*shape, attention_mask.shape[-1])
    output = F.scaled_dot_product_attention(
        query.reshape(*shape, width), key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.reshape(batch, 1, heads, value.shape[-1])


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
    """What transformers' sdpa computes: query (B, H, Q, D), key and value (B, K, S, D) -> (B, Q, H, D).

    segment_lengths: numbers of queries and of keys of the segments of a row; none sees another, and queries without
    keys get zeros. sliding_window: see `make_blocks`; without segments, windows are in the mask.
    """
    if not runs_here(query):
        kwargs |= {"scaling": scaling, "is_causal": is_causal, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = (cast_once(states) for states in (query, key, value))
    trains = torch.is_grad_enabled() and query.dtype == torch.bfloat16 and query.requires_grad and not dropout
    if segment_lengths is None:
        plain = attention_mask is None and kwargs.get("position_bias") is None
        if not (trains and plain and (query.shape[2] == key.shape[2] or not is_causal)):
            shares_keys = query.shape[2] == 1 and key.shape[1] < query.shape[1]
            if shares_keys and kwargs.get("position_bias") is None and "cache" not in kwargs:
                return attend_to_cache(query, key, value, attention_mask, scaling, dropout), None
            kwargs |= {"scaling": scaling, "is_causal": is_causal, "dropout": dropout}
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        segment_lengths, sliding_window = ((query.shape[2], key.shape[2]),), None
    options = {"segments": segment_lengths, "causal": is_causal, "window": sliding_window}
    if trains:
        return blockwise_attention(query, key, value, scaling=scaling, **options), None
    outputs = []
    for block in make_blocks(**options):
        if block.key.start == block.key.stop:
            length = block.query.stop - block.query.start
            outputs.append(query.new_zeros(query.shape[0], length, query.shape[1], value.shape[-1]))
            continue
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


def runs_here(states: torch.Tensor) -> bool:
    """Whether Python of our own may attend: not in traces, exports and torch.func, which hold torch's operators."""
    return states.is_cpu and not (torch.jit.is_tracing() or torch.compiler.is_exporting() or is_transformed())


def _segment_lengths(queries: torch.LongTensor, keys: torch.LongTensor) -> dict:
    return {"segment_lengths": tuple(zip(queries.tolist(), keys.tolist(), strict=True))}


def _serves(hidden_states: torch.Tensor) -> bool:
    """Not in a graph, which would be compiled again for every set of lengths, nor where a user's function attends."""
    ours = ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    return ours and runs_here(hidden_states) and values_are_known()


TAKES_LENGTHS = TakesLengths(_segment_lengths, _serves)
