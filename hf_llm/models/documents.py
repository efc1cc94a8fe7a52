"""Documents packed into one row, and the positions of their tokens.

`document_ids` (batch, seq) int64 number the documents of a row from 0 upwards, -1 is padding. They are passed to the
model, or found from `position_ids` that start again. With a cache they are remembered on the cache, so that tokens
which come later know the documents before them.
"""

import torch
from transformers.cache_utils import Cache
from transformers.utils import is_torchdynamo_compiling


def past_length(past_key_values: Cache | None) -> int | torch.Tensor:
    """Tokens in the cache: an int, or a tensor under static caches."""
    return 0 if past_key_values is None else past_key_values.get_seq_length()


def find_documents(
    position_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
) -> torch.LongTensor | None:
    """Document ids (batch, seq) of rows whose positions do not always grow, or `None` if all of them do.

    A token begins a document if its position is not greater than the one before it. A step of more than one does not
    (positions may be skipped inside a document, https://arxiv.org/abs/2309.10400), and padding does not.
    While compiling, where values cannot be looked at, ids are always returned.
    """
    begins = torch.zeros_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
    if attention_mask is not None:
        real = attention_mask.bool()
        begins[:, 1:] &= real[:, 1:] & real[:, :-1]
    if not is_torchdynamo_compiling() and not begins.any():
        return None
    return begins.long().cumsum(-1)


def resolve_documents(
    document_ids: torch.LongTensor | None,
    position_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    shape: tuple[int, int],
) -> torch.LongTensor | None:
    """The document of every token so far (batch, past + seq), or `None` where nothing is packed.

    Raises ValueError if `document_ids` has another shape than (batch, seq) or (batch, past + seq).
    """
    batch, length = shape
    known = getattr(past_key_values, "document_ids", None)
    if document_ids is None and known is None:
        if position_ids is None or position_ids.ndim != 2:
            return None
        if past_key_values is not None and (is_torchdynamo_compiling() or int(past_length(past_key_values)) > 0):
            return None
        if attention_mask is not None and (
            not isinstance(attention_mask, torch.Tensor) or attention_mask.shape[-2:] != (batch, length)
        ):
            return None
        documents = find_documents(position_ids, attention_mask)
        documents = None if documents is None else documents.expand(batch, -1)
    else:
        past = int(past_length(past_key_values))
        if document_ids is None:
            document_ids = _continue(known[:, :past], position_ids, shape)
        if document_ids.shape == (batch, past + length):
            documents = document_ids
        elif known is not None and document_ids.shape == (batch, length):
            documents = torch.cat((known[:, :past].to(document_ids), document_ids), dim=-1)
        else:
            raise ValueError(
                f"`document_ids` has shape {tuple(document_ids.shape)}, but must have one id for each token: "
                f"{(batch, past + length)}."
            )
    if documents is not None and past_key_values is not None:
        past_key_values.document_ids = documents
    return documents


def _continue(known: torch.LongTensor, position_ids: torch.LongTensor | None, shape: tuple[int, int]):
    """Ids of new tokens behind the documents of a cache: the last document goes on until positions start again."""
    last = known[:, -1:].expand(shape[0], -1)
    if position_ids is None:
        return last.expand(shape).clone()
    begins = torch.zeros(shape, dtype=torch.long, device=known.device)
    begins[:, 1:] = (position_ids[:, 1:] <= position_ids[:, :-1]).long()
    begins[:, :1] = (position_ids[:, :1] == 0).long()
    return last + begins.cumsum(-1)


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
