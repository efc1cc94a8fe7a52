"""Which token sees which: packed documents, padding, causality and windows, in the form each attention backend takes.

`Documents` knows packed documents by the ids of their tokens and by their lengths. `Visibility` is made once in a
forward pass and read by all layers. Masks come from transformers' own mask interface (bool for sdpa, additive for
eager, BlockMask for flex, 2-D for flash attention) and index rules. Attention functions in `LENGTHS` take the lengths
of documents in place of a mask; the layers then run on one row of real tokens.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

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

from .inputs import check_documents
from .operators import is_transformed, values_are_known


RULES = {True: causal_mask_function, False: bidirectional_mask_function}  # by whether attention is causal
WINDOWS = {True: sliding_window_causal_mask_function, False: sliding_window_bidirectional_mask_function}


# ---- documents ------------------------------------------------------------------------------------------------------


class Documents:
    """The documents of rows of tokens, by the ids of their tokens and by their lengths.

    ids: (batch, tokens) int64, numbered 0, 1, ... along each row; -1 is padding.
    """

    def __init__(self, ids: torch.LongTensor):
        self.ids = ids
        self._real = None  # places of real tokens along the flattened rows, once `unpad` has found them

    @classmethod
    def whole(cls, states: torch.Tensor) -> "Documents":
        """Rows (batch, tokens, ...) of one document each, without padding."""
        return cls(torch.zeros(states.shape[:2], dtype=torch.long, device=states.device))

    def last(self, length: int) -> "Documents":
        """The last `length` tokens of each row."""
        return Documents(self.ids[:, -length:])

    def begins(self) -> torch.BoolTensor:
        """(batch, tokens), True at the first token of each document and of each stretch of padding."""
        return F.pad(self.ids[:, 1:] != self.ids[:, :-1], (1, 0), value=True)

    def positions(self) -> torch.LongTensor:
        """Positions (batch, tokens) that start from 0 in each document."""
        index = torch.arange(self.ids.shape[-1], device=self.ids.device).expand_as(self.ids)
        return index - torch.where(self.begins(), index, 0).cummax(-1).values

    def lengths(self, keys: "Documents", keep_padding: bool) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Numbers (segments,) of queries and of keys of each document, 0 where one side has none of it, row by row.

        keep_padding: rows keep their padding, each stretch of which counts as a segment of its own.
        """
        last = self.ids.max() if keys is self else torch.maximum(self.ids.max(), keys.ids.max())
        width, step = 2 * int(last) + 4, slice(None) if keep_padding else slice(1, None, 2)
        queries = self._tokens_of_segments(width)[:, step]
        keys = queries if keys is self else keys._tokens_of_segments(width)[:, step]
        used = (queries + keys) > 0
        return queries[used], keys[used]

    def _tokens_of_segments(self, width: int) -> torch.LongTensor:
        """Numbers of tokens (batch, width): in column 2 * id + 1 of a document, in column 2 * id of the padding before
        it."""
        padding = 2 * (self.ids.cummax(-1).values + 1)
        segments = torch.where(self.ids >= 0, 2 * self.ids + 1, padding)
        batch = len(segments)
        segments = segments + width * torch.arange(batch, device=segments.device)[:, None]
        return torch.bincount(segments.flatten(), minlength=batch * width).view(batch, width)

    def unpad(self, states: torch.Tensor) -> torch.Tensor:
        """(batch or 1, tokens, ...) -> one row (1, real tokens, ...)."""
        if self._real is None:
            self._real = (self.ids >= 0).flatten().nonzero()[:, 0]
        return states.expand(*self.ids.shape, *states.shape[2:]).flatten(0, 1).index_select(0, self._real)[None]

    def repad(self, states: torch.Tensor) -> torch.Tensor:
        """The inverse of `unpad`: (1, real tokens, width) -> (batch, tokens, width), zeros at padding."""
        padded = states.new_zeros(self.ids.numel(), states.shape[-1])
        return padded.index_copy(0, self._real, states[0]).view(*self.ids.shape, -1)


def past_length(cache: Cache | None) -> int | torch.Tensor:
    """Tokens in the cache: an int, or a tensor under static caches."""
    return 0 if cache is None else cache.get_seq_length()


def find_documents(
    document_ids: torch.LongTensor | None,
    position_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    shape: tuple[int, int],
) -> Documents | None:
    """The documents of all tokens so far (batch, past + seq), or `None` where nothing is packed.

    They are passed as ids, or found from positions that start again, and remembered on the cache. Where values cannot
    be looked at, as in a graph, positions always give documents, and those behind a cache none. Behind a cache, the
    position of a single token begins none either (only `document_ids` do): looking at it would make an accelerator
    wait for every generated token.

    shape: (batch, seq) of the new tokens. Raises ValueError if `document_ids` has another shape than that or (batch,
    past + seq).
    """
    known = getattr(cache, "document_ids", None)
    if document_ids is None and known is None and cache is not None:
        if shape[1] == 1 or not values_are_known():
            return None
    past = int(past_length(cache))
    total = (shape[0], past + shape[1])
    known = None if known is None else known[:, :past]
    if document_ids is not None:
        check_documents(document_ids)
    else:
        begins = _starts_again(position_ids, attention_mask, past, shape)
        if known is None:
            if begins is None or (values_are_known() and not begins.any()):
                return None
            known = begins.new_zeros(shape[0], past, dtype=torch.long)
        last = known.amax(-1, keepdim=True) if past else 0
        document_ids = last + (known.new_zeros(shape) if begins is None else begins.long().cumsum(-1))
    if known is not None and document_ids.shape == shape != total:
        document_ids = torch.cat((known.to(document_ids), document_ids), dim=-1)
    if document_ids.shape != total:
        raise ValueError(
            f"`document_ids` has shape {tuple(document_ids.shape)}, but must have one id for each token: {total}."
        )
    if cache is not None:
        _remember(cache, document_ids)
    return Documents(document_ids)


def _starts_again(position_ids, attention_mask, past: int, shape: tuple[int, int]) -> torch.BoolTensor | None:
    """Shape (batch, seq), True where positions start again: where a document begins that is not the row's first.
    `None` where positions cannot tell: a mask in a backend's own form already keeps documents apart.

    A token begins a document if its position is not greater than that of the real token before it. A step of more than
    one does not (positions may be skipped inside a document, https://arxiv.org/abs/2309.10400), and padding does not.
    Behind `past` tokens of a cache, whose positions are not known, the first token begins one if its position is 0.
    """
    if position_ids is None or position_ids.ndim != 2:
        return None
    position_ids = position_ids.expand(shape)
    if attention_mask is None:
        begins = torch.zeros_like(position_ids, dtype=torch.bool)
        begins[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.shape == (shape[0], past + shape[1]):
        real = attention_mask[:, past:].bool()
        index = torch.arange(shape[1], device=real.device).where(real, -1)
        before = F.pad(index.cummax(-1).values[:, :-1], (1, 0), value=-1)  # the last real token, -1 for none
        begins = real & (before >= 0) & (position_ids <= position_ids.gather(-1, before.clamp(min=0)))
    else:
        return None
    if past:
        begins[:, 0] = position_ids[:, 0] == 0
    return begins


def mark_padding(documents: Documents | None, attention_mask) -> Documents | None:
    """Documents with -1 where a 2-D mask (batch, tokens) has 0; `None` if there is neither padding nor packing."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2 or bool(attention_mask.all()):
        return documents
    return Documents(torch.where(attention_mask.bool(), 0 if documents is None else documents.ids, -1))


# ---- documents of a cache -------------------------------------------------------------------------------------------


class _RemembersDocuments:
    """Mixed into the class of a cache that holds packed documents: `document_ids` (batch, tokens) follow its rows."""

    def __reduce__(self):
        """By the cache's own class, since pickle looks classes up by name."""
        return _make_remembering, (type(self).__bases__[1],), self.__dict__

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.document_ids = self.document_ids[beam_idx.to(self.document_ids.device)]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.document_ids = self.document_ids[indices.to(self.document_ids.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.document_ids = self.document_ids.repeat_interleave(repeats, dim=0)


@functools.cache
def _remembering(cls: type[Cache]) -> type[Cache]:
    return type(cls.__name__, (_RemembersDocuments, cls), {"__module__": cls.__module__})


def _make_remembering(cls: type[Cache]) -> Cache:
    """An empty object, whose attributes pickle sets."""
    return object.__new__(_remembering(cls))


def _remember(cache: Cache, document_ids: torch.LongTensor) -> None:
    """Keep document ids (batch, tokens) on a cache. A graph cannot change an object's class: ids that a compiled
    forward pass is the first to keep do not follow rows that are reordered."""
    if not isinstance(cache, _RemembersDocuments) and values_are_known():
        cache.__class__ = _remembering(type(cache))
    cache.document_ids = document_ids


# ---- backends that take lengths -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TakesLengths:
    """How an attention function takes documents by their lengths.

    Attributes:
        arguments: of the numbers of queries and of keys (segments,) int64, the function's keyword arguments.
        serves: whether it takes them for these hidden states.
        has_masks: whether it takes masks as well. Lengths then stand for packed documents only; otherwise for padding
            and in rows that keep their padding, too.
    """

    arguments: Callable[[torch.LongTensor, torch.LongTensor], dict]
    serves: Callable[[torch.Tensor], bool] = lambda hidden_states: True
    has_masks: bool = True


def _flash_arguments(queries: torch.LongTensor, keys: torch.LongTensor) -> dict:
    """`cu_seq_lens_{q,k}` (segments + 1,) int32 and `max_length_{q,k}`."""
    arguments = {}
    for side, lengths in (("q", queries), ("k", keys)):
        arguments[f"cu_seq_lens_{side}"] = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        arguments[f"max_length_{side}"] = int(lengths.max())
    return arguments


# By name of the attention function. "flash" stands for all flavours of flash attention, those of the Hub included.
LENGTHS: dict[str, TakesLengths] = {"flash": TakesLengths(_flash_arguments, has_masks=False)}


def takes_lengths(config, hidden_states: torch.Tensor) -> TakesLengths | None:
    """The entry of `LENGTHS` for the configured attention function, or `None` if it needs masks."""
    backend = config._attn_implementation or ""
    entry = LENGTHS.get("flash" if "flash" in backend else backend)
    return entry if entry is not None and entry.serves(hidden_states) else None


# ---- visibility -----------------------------------------------------------------------------------------------------


@dataclass
class AttentionInputs:
    """What the layers of one layer type attend with: mask, bias, and keywords for the backend."""

    mask: object = None
    bias: torch.Tensor | None = None
    distance: torch.LongTensor | None = None
    keywords: dict = field(default_factory=dict)

    def add_bias(self, bias: torch.Tensor, batch: int) -> None:
        """Fold `bias` (1 or batch, heads, q, kv) into an additive or boolean mask, or keep it apart (flex, paged)."""
        if not isinstance(self.mask, torch.Tensor) or self.mask.ndim != 4:
            self.bias = bias.expand(batch, -1, -1, -1)
        elif self.mask.dtype == torch.bool:
            self.mask = torch.where(self.mask, bias, torch.finfo(bias.dtype).min)
        else:
            self.mask = self.mask + bias


class Source(NamedTuple):
    """The encoder's output, which a decoder attends to: states (batch, source, width); mask and document ids (batch,
    source), or `None`."""

    states: torch.Tensor
    mask: torch.Tensor | None
    document_ids: torch.LongTensor | None


class Places(NamedTuple):
    """Places of queries and keys along a row: how many keys there are, and the first key's and the first query's."""

    kv_length: int
    kv_offset: int = 0
    q_offset: int | torch.Tensor = 0

    @property
    def kv_end(self) -> int:
        return self.kv_offset + self.kv_length


class Visibility:
    """What the tokens of one forward pass of a stack see of each other and of a `source`.

    hidden_states (batch, seq, hidden) are the tokens, documents (batch, past + seq) theirs and those of a cache.
    attention_mask: `None`; (batch, past + seq) with zeros at padding; a mask in the backend's own form; or a dict of
    these by layer type. options: the forward's keyword arguments. Attention is causal as the stack is, unless they say
    `is_causal`. The stack's position bias (ALiBi, or the shared relative bias) is folded into the mask once for all
    layers where the backend adds masks (eager, sdpa), and passed on otherwise.

    Attributes:
        layers: what self-attention attends with, by layer type.
        cross: what cross-attention attends with.
        rows, source_rows: the documents of the tokens and of the source, where the layers run on one row of real
            tokens; otherwise `None`.
    """

    def __init__(
        self,
        stack,
        hidden_states: torch.Tensor,
        documents: Documents | None,
        attention_mask,
        options: dict,
        cache: Cache | None = None,
        source: Source | None = None,
    ):
        asked, config = options.get("is_causal"), stack.config
        self.causal = stack.is_causal if asked is None else asked
        self.config, self.position_bias = config, stack.position_bias
        self.hidden_states, self.documents, self.cache = hidden_states, documents, cache
        self.biased = stack.position_bias is not None or config.relative_attention_bias_per_layer
        self.lengths = takes_lengths(config, hidden_states)
        self.needs_lengths = self.lengths is not None and not self.lengths.has_masks
        self.rows = self.source_rows = None
        if self._may_unpad(attention_mask, options):
            self.rows = mark_padding(documents, attention_mask)
        self.cross = AttentionInputs() if source is None else self._cross_attention(source)
        layer_types = dict.fromkeys(config.layer_types)
        if self.rows is not None:
            self.layers = dict.fromkeys(layer_types, self._by_lengths(self.rows, self.rows))
        else:
            each = attention_mask if isinstance(attention_mask, dict) else dict.fromkeys(layer_types, attention_mask)
            self.layers = {name: self._self_attention(name, each.get(name)) for name in layer_types}

    def _may_unpad(self, attention_mask, options: dict) -> bool:
        """Whether the layers may run on real tokens alone: not behind a cache, whose rows keep their shape, nor where
        the caller gives lengths or masks of its own or wants the hidden states of the batch as it is. Where masks
        would do, only packed documents are unpadded, and not where router logits are wanted: what padding gives there
        stays as transformers' models give it."""
        shown = options.get("output_hidden_states")
        shown = self.config.output_hidden_states if shown is None else shown
        given = (
            "cu_seq_lens_q" in options or isinstance(attention_mask, dict) or getattr(attention_mask, "ndim", 2) != 2
        )
        if self.lengths is None or self.cache is not None or shown or given:
            return False
        packed = self.documents is not None and not self.biased and not options.get("output_router_logits")
        return packed or self.needs_lengths

    def _by_lengths(self, queries: Documents, keys: Documents) -> AttentionInputs:
        return AttentionInputs(keywords=self.lengths.arguments(*queries.lengths(keys, keep_padding=self.rows is None)))

    def _self_attention(self, layer_type: str, attention_mask) -> AttentionInputs:
        documents, places = self.documents, self._places(layer_type, attention_mask)
        batch, q_length = self.hidden_states.shape[:2]
        if documents is not None and self.needs_lengths:
            real = mark_padding(documents, attention_mask)
            keys = Documents(_pad_keys(real.ids, places.kv_end, -1)[:, places.kv_offset : places.kv_end])
            return self._by_lengths(real.last(q_length), keys)
        window = self.config.sliding_window if layer_type == "sliding_attention" else None
        compiled_decoding = getattr(self.cache, "is_compileable", False) and q_length == 1
        may_skip = not compiled_decoding and not self.biased
        inputs = AttentionInputs(
            self._mask(attention_mask, documents, documents, places, self.causal, window, may_skip)
        )
        device = self.hidden_states.device
        if self.biased:
            keys = torch.arange(places.kv_length, device=device) + places.kv_offset
            queries = torch.arange(q_length, device=device) + places.q_offset
            inputs.distance = keys[None, :] - queries[:, None]  # (q_len, kv_len)
        if self.position_bias is not None:
            positions = _key_positions(attention_mask, places.kv_end, device)[:, places.kv_offset :]
            bias = self.position_bias(inputs.distance, positions)
            inputs.add_bias(bias.to(self.hidden_states.dtype), batch)
        return inputs

    def _places(self, layer_type: str, attention_mask) -> Places:
        """Where the queries and keys of a layer type are, its cache included."""
        length = self.hidden_states.shape[1]
        if self.cache is not None:
            layer_idx = self.config.layer_types.index(layer_type)
            q_offset = self.cache.get_query_offset(layer_idx)
            if isinstance(q_offset, torch.Tensor):
                q_offset = q_offset.to(self.hidden_states.device)
            return Places(*self.cache.get_mask_sizes(length, layer_idx), q_offset)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            length = attention_mask.shape[-1]
        return Places(length)

    def _cross_attention(self, source: Source) -> AttentionInputs:
        """Also sets `source_rows` where the source's states are unpadded."""
        targets = None if self.documents is None else self.documents.last(self.hidden_states.shape[1])
        sources = None if source.document_ids is None else Documents(source.document_ids)
        if self.rows is not None or self.needs_lengths:  # flash attention would unpad queries by the keys' mask
            sources = mark_padding(sources, source.mask)
            if sources is None and self.rows is None:
                return AttentionInputs()
            sources = sources or Documents.whole(source.states)
            self.source_rows = None if self.rows is None else sources
            return self._by_lengths(self.rows or targets or Documents.whole(self.hidden_states), sources)
        if targets is None and sources is not None:  # one document, and padding in the source
            targets = Documents.whole(self.hidden_states)
        return AttentionInputs(self._mask(source.mask, targets, sources, Places(source.states.shape[1]), causal=False))

    def _mask(
        self,
        attention_mask,
        queries: Documents | None,
        keys: Documents | None,
        places: Places,
        causal: bool,
        window: int | None = None,
        may_skip: bool = True,
    ):
        """The mask of one kind of attention in the backend's form; one that has it (4-D, BlockMask) is returned as it
        is. queries, keys: the documents of all places, those before the offsets included. may_skip: whether `None` may
        stand for a plain mask that the backend applies by itself."""
        backend, device = self.config._attn_implementation, self.hidden_states.device
        if attention_mask is not None and len(attention_mask.shape) == 4:
            return attention_mask
        if backend not in ALL_MASK_ATTENTION_FUNCTIONS:
            return None
        if attention_mask is not None:
            attention_mask = attention_mask.to(device=device, dtype=torch.bool)
        rule = RULES[causal] if window is None else WINDOWS[causal](window)
        if queries is not None:
            rule = and_masks(_same_document(queries.ids, _pad_keys(keys.ids, places.kv_end, -2)), rule)
        may_skip = may_skip and queries is None and not is_transformed()  # transformers would look for padding
        return ALL_MASK_ATTENTION_FUNCTIONS[backend](
            batch_size=self.hidden_states.shape[0],
            q_length=self.hidden_states.shape[1],
            kv_length=places.kv_length,
            q_offset=places.q_offset,
            kv_offset=places.kv_offset,
            mask_function=rule,
            attention_mask=attention_mask,
            local_size=window,
            allow_is_causal_skip=may_skip and causal,
            allow_is_bidirectional_skip=may_skip and not causal,
            dtype=self.hidden_states.dtype,
            config=self.config,
            device=device,
        )


def _same_document(query_ids: torch.LongTensor, key_ids: torch.LongTensor) -> Callable:
    def rule(batch_idx, head_idx, q_idx, kv_idx):
        return query_ids[batch_idx, q_idx] == key_ids[batch_idx, kv_idx]

    return rule


def _pad_keys(ids: torch.LongTensor, length: int, value: int) -> torch.LongTensor:
    """Of keys (batch, tokens), as many as a cache has places: a static cache is longer than what has been seen."""
    missing = length - ids.shape[-1]
    return F.pad(ids, (0, missing), value=value) if missing > 0 else ids


def _key_positions(mask, length: int, device: torch.device) -> torch.LongTensor:
    """Positions (batch or 1, length) of all keys so far. Where a mask tells which are real, these are counted: the
    ones of a 2-D mask, those that the last query sees in a 4-D mask."""
    if not isinstance(mask, torch.Tensor):
        return torch.arange(length, device=device)[None]
    if mask.ndim == 4:
        mask = mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] == 0
    real = _pad_keys(mask.long(), length, 0)
    return (real.cumsum(-1) - 1) * real
