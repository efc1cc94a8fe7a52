"""From text to token ids, with the number of UTF-8 bytes that each token stands for."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from .objectives import Objective


def check_offsets(tokenizer: PreTrainedTokenizerBase, reader: str) -> None:
    """Whether a tokenizer tells which characters its tokens stand for; `reader` needs that.

    Raises:
        ValueError: it does not.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{reader} needs to know which characters a token stands for, which a {type(tokenizer).__name__}, written "
            "in Python, does not tell: take a tokenizer of the tokenizers library (`tokenizer.is_fast`)"
        )


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokenizes documents without adding special tokens; what looks like a special token in the text is plain text.

    Returns:
        Per text, ids and token bytes, both (tokens,) int32. A token's bytes run from the end of the token before it
        to its own end (the last one's to the end of the text), so that they sum to the text's.
    """
    check_offsets(tokenizer, "counting the bytes of tokens")
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
    return [(np.array(ids, np.int32), _token_bytes(offsets, text)) for ids, offsets, text in pairs]


def _token_bytes(offsets: list[tuple[int, int]], text: str) -> np.ndarray:
    """Bytes per token, (tokens,) int32, from (start, end) offsets in characters."""
    if not offsets:
        return np.zeros(0, np.int32)
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF)
    bytes_before = np.concatenate(([0], np.cumsum(widths)))
    ends = bytes_before[np.array(offsets, np.int64)[:, 1]]
    ends[-1] = bytes_before[-1]
    return np.diff(np.maximum.accumulate(ends), prepend=0).astype(np.int32)


def encode_batch(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    columns: list[str],
    capacity: tuple[int, ...],
) -> dict[str, list]:
    """For `datasets.map(batched=True)`: encodes documents (or source and target pairs) and frames them.

    Documents without tokens, and pairs that do not fit a row, are left out.

    Returns:
        Columns `ids` and `token_bytes` (int32 arrays), `length`, and `mode`: the source's length of a pair, else 0.
    """
    parts = [encode_texts(tokenizer, batch[column]) for column in columns]
    start, end = objective.frame_ids["document_start"], objective.frame_ids["document_end"]
    rows = []
    for document in zip(*parts, strict=True):
        lengths = [len(ids) for ids, _ in document]
        is_pair = len(lengths) > 1
        if not all(lengths) or (is_pair and not objective.fits(sum(lengths), capacity, lengths[0])):
            continue
        ids = np.concatenate((start, *(ids for ids, _ in document), end)).astype(np.int32)
        num_bytes = np.zeros(len(ids), np.int32)
        num_bytes[len(start) : len(ids) - len(end)] = np.concatenate([b for _, b in document])
        rows.append((ids, num_bytes, len(ids), lengths[0] if is_pair else 0))
    return {name: [row[i] for row in rows] for i, name in enumerate(("ids", "token_bytes", "length", "mode"))}
