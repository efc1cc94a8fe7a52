"""From text to token ids, with what each token covers of the text: how many UTF-8 bytes, and where words begin."""

from collections.abc import Iterator

import numpy as np
import regex
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

from .objectives import Objective


# What stands within words, in scripts that put spaces between them; two of it side by side are of one word.
_INNER = r"[\w--[\p{Han}\p{Hiragana}\p{Line_Break=Complex_Context}]]"
_WORD = rf"(?:\X(?<={_INNER})(?={_INNER}))*\X"
# The first alternative is the second for ASCII, and faster; the next two are white space.
WORDS = regex.compile(
    rf" ?[A-Za-z0-9_]++(?![^\x00-\x7F])| ?(?!\s){_WORD}|\s+(?= \S)|(?:(?=\s)\X)+(?<!{_INNER})|{_WORD}", regex.V1
)

PIECE = 1 << 18  # characters that are tokenized at a time: offsets of a book would take a hundred times its size


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

    Raises:
        ValueError: a tokenizer without a backend of the tokenizers library, which does not tell what its tokens cover;
            but those of bytes or characters (ByT5, CANINE) are understood.
    """
    encoded = []
    for pieces in _encode(tokenizer, texts):
        sizes = [_token_bytes(spans, piece) for _, spans, piece in pieces]
        encoded.append((np.concatenate([ids for ids, _, _ in pieces]), np.concatenate(sizes)))
    return encoded


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[tuple[np.ndarray, np.ndarray, str]]]:
    """Per text its pieces, of which all but long texts have one: ids, (tokens,) int32, the bytes of the piece that
    each covers, (tokens, 2) starts and ends, and the piece."""
    short = iter(_encode_pieces(tokenizer, [text for text in texts if len(text) <= PIECE]))
    return [
        [next(short)] if len(text) <= PIECE else [_encode_pieces(tokenizer, [piece])[0] for piece in _pieces(text)]
        for text in texts
    ]


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most `PIECE` characters, cut before a space, or else a word, where there is one."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            starts = [match.start() for match in WORDS.finditer(text, end - 1000, end)]
            end = max(starts, key=lambda place: (text[place] == " ", place), default=end)
        yield text[start:end]
        start = end


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray, str]]:
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=tokenizer.is_fast,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    is_byte_level = backend and backend.normalizer is None and isinstance(backend.decoder, decoders.ByteLevel)
    spans = []
    for i, (ids, text) in enumerate(zip(encoded["input_ids"], texts, strict=True)):
        places = _byte_places(text)
        ends = np.cumsum([len(token) for token in encoded.tokens(i)] if is_byte_level else [0])
        if ends[-1:].tolist() == [places[-1]]:  # a character of these tokens is a byte; offsets leave spaces out
            spans.append(np.stack((np.concatenate(([0], ends[:-1])), ends), axis=1))
        elif tokenizer.is_fast:
            spans.append(places[np.array(encoded["offset_mapping"][i], np.int64).reshape(-1, 2)])
        elif len(ids) in (len(text), places[-1]):
            bounds = places if len(ids) == len(text) else np.arange(len(ids) + 1)
            spans.append(np.stack((bounds[:-1], bounds[1:]), axis=1))
        else:
            raise ValueError(
                f"tokenizer: {type(tokenizer).__name__} does not tell what its tokens cover of a text; must be a fast "
                "tokenizer (of the tokenizers library), or one of bytes or characters (ByT5, CANINE)"
            )
    return list(zip((np.array(ids, np.int32) for ids in encoded["input_ids"]), spans, texts, strict=True))


def _byte_places(text: str) -> np.ndarray:
    """Where each character begins in UTF-8, and where the text ends, (characters + 1,)."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF)
    return np.concatenate(([0], np.cumsum(widths)))


def _token_bytes(spans: np.ndarray, text: str) -> np.ndarray:
    """Bytes per token, (tokens,) int32."""
    ends = spans[:, 1].copy()
    ends[-1:] = len(text.encode("utf-8"))
    return np.diff(np.maximum.accumulate(ends), prepend=0).astype(np.int32)


def word_starts(ids: np.ndarray, spans: np.ndarray, text: str, fallback: dict[int, int]) -> np.ndarray:
    """Which tokens begin a word, (tokens,) bool: all tokens up to the next beginning are of this word.

    A word is a run of letters, digits, underscores and the marks on them; in scripts without spaces between words
    (Han, Hiragana, Thai, Lao, Khmer, Burmese, ...) one character with its marks; elsewhere one symbol, such as a
    punctuation mark or an emoji, of however many code points (a grapheme cluster: Unicode's annex 29). A space before
    a word belongs to it; other white space is like a word. Words that have a token in common are one.

    Args:
        fallback: id -> byte, of tokens that stand for a byte of a character that is not in the vocabulary.
    """
    starts, ends = spans.T
    before = np.concatenate(([0], np.maximum.accumulate(ends)))[: len(ids)]
    starts = np.where(starts < ends, starts, before)  # spaces that the offsets leave out are of their token
    if fallback:  # Unigram says of each byte of an unknown run that it covers the run
        index = np.arange(len(ids))
        is_new = np.concatenate(([True], (spans[1:] != spans[:-1]).any(axis=1)))[: len(ids)]
        place = starts + index - np.maximum.accumulate(np.where(is_new, index, 0))
        place = place.clip(0, np.maximum(ends - 1, 0))
        read = np.frombuffer(text.encode("utf-8"), np.uint8)[place]
        is_byte = read == np.array([fallback.get(token, -1) for token in ids.tolist()])
        starts, ends = np.where(is_byte, place, starts), np.where(is_byte, place + 1, ends)
    beginnings = _byte_places(text)[[match.start() for match in WORDS.finditer(text)]]
    first = np.searchsorted(beginnings, starts, side="right")
    last = np.searchsorted(beginnings, np.maximum(ends, starts + 1), side="left")
    return first > np.concatenate(([0], np.maximum.accumulate(last)))[: len(ids)]


def _fallback_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """id -> byte, of tokens like `<0xE2>`."""
    if not tokenizer.is_fast:
        return {}
    ids = {byte: tokenizer.backend_tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {token: byte for byte, token in ids.items() if token is not None}


def encode_batch(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    capacity: tuple[int, ...],
) -> dict[str, list]:
    """For `datasets.map(batched=True)`: encodes documents (or source and target pairs) and frames them.

    Documents without tokens, and pairs that do not fit a row, are left out.

    Returns:
        Columns `tokens` and `token_bytes` (int32 arrays), `length`, and `mode`: the source's length of a pair, else 0;
        and `word_starts` (bool arrays) if the objective chooses words.
    """
    start, end = objective.frame_ids["document_start"], objective.frame_ids["document_end"]
    fallback = _fallback_bytes(tokenizer) if objective.whole_words else {}
    rows = {name: [] for name in ("tokens", "token_bytes", "length", "mode", *["word_starts"] * objective.whole_words)}
    for document in zip(*(_encode(tokenizer, batch[column]) for column in objective.columns), strict=True):
        lengths = [sum(len(ids) for ids, _, _ in pieces) for pieces in document]
        is_pair = len(lengths) > 1
        if not all(lengths) or (is_pair and not objective.fits(sum(lengths), capacity, lengths[0])):
            continue
        pieces = [piece for column in document for piece in column]
        ids = np.concatenate((start, *(ids for ids, _, _ in pieces), end)).astype(np.int32)
        inside = slice(len(start), len(ids) - len(end))
        num_bytes = np.zeros(len(ids), np.int32)
        num_bytes[inside] = np.concatenate([_token_bytes(spans, text) for _, spans, text in pieces])
        rows["tokens"].append(ids)
        rows["token_bytes"].append(num_bytes)
        rows["length"].append(len(ids))
        rows["mode"].append(lengths[0] if is_pair else 0)
        if objective.whole_words:
            starts = np.ones(len(ids), bool)
            starts[inside] = np.concatenate([word_starts(*piece, fallback) for piece in pieces])
            rows["word_starts"].append(starts)
    return rows
