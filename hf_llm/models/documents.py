"""Documents packed into one row, and the positions of their tokens.

`document_ids` (batch, seq) int64 number the documents of a row from 0 upwards, -1 is padding. They are passed to the
model, or found from `position_ids` that start again. With a cache they are remembered on the cache, so that tokens
which come later know the documents before them.
"""

import functools

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache

from .inputs import check_documents
from .operators import values_are_known


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


def _remember(cache: Cache, documents: torch.LongTensor) -> None:
    if not isinstance(cache, _RemembersDocuments) and values_are_known():
        cache.__class__ = _remembering(type(cache))
    cache.document_ids = documents


def past_length(past_key_values: Cache | None) -> int | torch.Tensor:
    """Tokens in the cache: an int, or a tensor under static caches."""
    return 0 if past_key_values is None else past_key_values.get_seq_length()


def starts_again(
    position_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, past: int = 0
) -> torch.BoolTensor:
    """(batch, seq), True where positions start again: where a document begins that is not the row's first.

    A token begins a document if its position is not greater than that of the real token before it. A step of more than
    one does not (positions may be skipped inside a document, https://arxiv.org/abs/2309.10400), and padding does not.
    Behind `past` tokens of a cache, whose positions are not known, the first token begins one if its position is 0.
    """
    begins = torch.zeros_like(position_ids, dtype=torch.bool)
    if attention_mask is None:
        begins[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    else:
        real = attention_mask.bool()
        index = torch.arange(real.shape[-1], device=real.device).where(real, -1)
        before = F.pad(index.cummax(-1).values[:, :-1], (1, 0), value=-1)  # the last real token, -1 for none
        begins = real & (before >= 0) & (position_ids <= position_ids.gather(-1, before.clamp(min=0)))
    if past:
        begins[:, 0] = position_ids[:, 0] == 0
    return begins


def resolve_documents(
    document_ids: torch.LongTensor | None,
    position_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    shape: tuple[int, int],
) -> torch.LongTensor | None:
    """The document of every token so far (batch, past + seq), or `None` where nothing is packed.

    Where values cannot be looked at, as in a graph, positions always give documents, and those behind a cache none.
    Behind a cache, the position of a single token begins none either (only `document_ids` do): looking at it would
    make an accelerator wait for every generated token. Raises ValueError if `document_ids` has another shape than
    (batch, seq) or (batch, past + seq).
    """
    batch, length = shape
    known = getattr(past_key_values, "document_ids", None)
    if document_ids is None and known is None and past_key_values is not None:
        if length == 1 or not values_are_known():
            return None
    past = int(past_length(past_key_values))
    known = None if known is None else known[:, :past]
    if document_ids is None:
        document_ids = _find_documents(position_ids, attention_mask, known, past, shape)
        if document_ids is None:
            return None
        known = document_ids.new_zeros(batch, past) if known is None else known
    else:
        check_documents(document_ids)
    if document_ids.shape == (batch, past + length):
        documents = document_ids
    elif known is not None and document_ids.shape == (batch, length):
        documents = torch.cat((known.to(document_ids), document_ids), dim=-1)
    else:
        raise ValueError(
            f"`document_ids` has shape {tuple(document_ids.shape)}, but must have one id for each token: "
            f"{(batch, past + length)}."
        )
    if past_key_values is not None:
        _remember(past_key_values, documents)
    return documents


def _find_documents(position_ids, attention_mask, known, past: int, shape) -> torch.LongTensor | None:
    """Ids (batch, seq) of new tokens, by their positions, behind the documents of a cache; `None` if there is but one
    document."""
    last = 0 if known is None or past == 0 else known.amax(-1, keepdim=True)
    total = (shape[0], past + shape[1])
    can_tell = position_ids is not None and position_ids.ndim == 2
    if attention_mask is not None:  # a mask that is made already says all there is to say
        can_tell &= isinstance(attention_mask, torch.Tensor) and attention_mask.shape == total
    if not can_tell:
        return None if known is None else last + known.new_zeros(shape)
    mask = None if attention_mask is None else attention_mask[:, past:]
    begins = starts_again(position_ids.expand(shape), mask, past)
    if known is None and values_are_known() and not begins.any():
        return None
    return last + begins.long().cumsum(-1)


def pass_documents(
    inputs: dict, document_ids: torch.LongTensor | None, cache: Cache | None, attention_mask, is_first: bool, half=""
) -> None:
    """Add to the inputs that `generate` has prepared the documents of a prompt (batch, prompt), the last of which goes
    on in new tokens, or nothing where the cache remembers them.

    half: "decoder_" in an encoder-decoder. `generate` makes the masks of static caches beforehand, without documents:
    where there are some, attention_mask, from which it made them, takes their place.
    """
    ids = inputs.get(f"{half}input_ids")
    shape = (inputs["inputs_embeds"] if ids is None else ids).shape[:2]
    is_made = inputs.get(f"{half}attention_mask") is not attention_mask
    known = None if is_first else getattr(cache, "document_ids", None)
    if document_ids is None and is_made and is_first:
        document_ids = resolve_documents(None, inputs.get(f"{half}position_ids"), attention_mask, cache, shape)
    elif document_ids is not None and known is not None and known.shape[1] >= document_ids.shape[1]:
        document_ids = None
    elif document_ids is not None and document_ids.shape[1] != shape[1]:
        total = shape[1] + (int(past_length(cache)) if known is None else known.shape[1])
        new = document_ids.amax(-1, keepdim=True).expand(-1, max(total - document_ids.shape[1], 0))
        document_ids = torch.cat((document_ids, new), dim=-1)[:, :total]
    inputs[f"{half}document_ids"] = document_ids
    if is_made and (document_ids is not None or known is not None):
        inputs[f"{half}attention_mask"] = attention_mask


def positions_in_documents(document_ids: torch.LongTensor) -> torch.LongTensor:
    """Positions (batch, seq) that start from 0 in every document."""
    index = torch.arange(document_ids.shape[-1], device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(begins, index, 0).cummax(-1).values


def default_positions(
    config,
    input_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    length: int,
    device: torch.device,
) -> torch.LongTensor:
    """Positions (batch or 1, seq) where none are passed, by `config.position_ids_source`; padding has -1."""
    past = past_length(past_key_values)
    padded = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    if config.position_ids_source == "attention_mask" and padded:
        real = attention_mask.long()
        return (real.cumsum(-1) * real - 1)[:, -length:].clamp(min=-config.position_offset)
    if config.position_ids_source == "input_ids" and input_ids is not None:
        real = (input_ids != config.pad_token_id).long()
        return ((real.cumsum(-1) + past) * real - 1).clamp(min=-config.position_offset)
    return (torch.arange(length, device=device) + past)[None]


def first_tokens(document_ids: torch.LongTensor) -> torch.BoolTensor:
    """(batch, seq), True where another document begins than the token before belongs to."""
    begins = torch.zeros_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return begins
