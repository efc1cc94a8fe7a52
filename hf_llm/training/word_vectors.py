"""Initial embeddings from pretrained word vectors.

Files: text of word2vec, fastText and GloVe (a word and its numbers on each line, with or without a line `count
dimension` at the top), and the binary format of word2vec (https://code.google.com/archive/p/word2vec/); each may be
compressed with gzip. They are streamed: only the vectors that are asked for are held in memory.
"""

import gzip
import io
from collections.abc import Collection, Container, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


GZIP_MAGIC = b"\x1f\x8b"
LONGEST_LINE = 2**20  # bytes of a binary file that are read to tell it from text
PREFIXES, SUFFIXES = ("Ġ", "▁", "##"), ("</w>",)  # what tokenizers mark the ends of words with


def load_word_vectors(
    path: str | Path, words: Container[str] | None = None, widths: Collection[int] = ()
) -> dict[str, np.ndarray]:
    """
    The vectors (dimension,) float32 of `words`, or all, in a file; the first counts where a word comes twice.

    Raises:
        ValueError: with the place, what is no vector; vectors are missing; their dimension is not all of `widths`.
    """
    with open(path, "rb") as raw:
        compressed = raw.peek(2)[:2] == GZIP_MAGIC
        file = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if compressed else raw
        first, start, count = file.readline(LONGEST_LINE).split(), 0, None
        dimension = len(first) - 1
        if len(first) == 2 and all(field.isdigit() for field in first):
            count, dimension = map(int, first)
            start = file.tell()
        if dimension < 1:
            raise ValueError(f"{path} has no word vectors: its first line must be a word and its numbers.")
        for width in set(widths) - {dimension}:
            raise ValueError(
                f"{path} has vectors of {dimension} dimensions, but the model's embeddings have {width}: choose "
                f"`hidden_size={dimension}`, or `embedding_size={dimension}` with `embedding_projection`."
            )
        binary = count is not None and not _is_text(file.readline(LONGEST_LINE), dimension)
        file.seek(start)
        records = _binary_records(file, dimension, count) if binary else _text_records(file, path, dimension, words)
        vectors, seen = {}, 0
        for word, vector in records:
            seen += 1
            if vector is not None and (words is None or word in words):
                vectors.setdefault(word, vector)
    if count is not None and seen < count:
        raise ValueError(f"{path} is cut off: it has {seen} of {count} vectors.")
    return vectors


def _is_text(line: bytes, dimension: int) -> bool:
    """Whether `line` ends in as many numbers."""
    _, *values = line.rsplit(maxsplit=dimension) or [b""]
    try:
        return len([float(value) for value in values]) == dimension
    except ValueError:
        return False


def _text_records(
    file: BinaryIO, path: str | Path, dimension: int, words: Container[str] | None
) -> Iterator[tuple[str, np.ndarray | None]]:
    """Words and vectors; None for the vector of a word that is not in `words`."""
    first = 1 if file.tell() == 0 else 2
    for number, line in enumerate(file, start=first):
        if not line.strip():
            continue
        if words is not None and _decode(line.split(b" ", 1)[0]) not in words:
            yield "", None
            continue
        word, *values = line.rstrip().rsplit(b" ", dimension)  # a word may have blanks in it (GloVe 840B)
        try:
            vector = np.array([float(value) for value in values], dtype=np.float32)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from None
        if len(vector) != dimension:
            raise ValueError(f"{path}, line {number}: {len(vector)} numbers, but the vectors have {dimension}.")
        yield _decode(word), vector


def _binary_records(file: BinaryIO, dimension: int, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """A word, a blank and its numbers (float32, little-endian), with or without a line's end between records."""
    for _ in range(count):
        word = bytearray()
        while (byte := file.read(1)) not in (b" ", b""):
            word += byte
        numbers = file.read(4 * dimension)
        if len(numbers) < 4 * dimension:
            return
        yield _decode(word.lstrip(b"\n")), np.frombuffer(numbers, dtype="<f4")


def _decode(word: bytes) -> str:
    return word.decode("utf-8", errors="replace")


def spellings(tokenizer: PreTrainedTokenizerBase, token: str) -> list[str]:
    """What a token may be called in a list of words: its text without the tokenizer's marks, as it is, in lower case,
    capitalised, and in capitals."""
    text = tokenizer.convert_tokens_to_string([token]).strip()
    for prefix in PREFIXES:
        text = text.removeprefix(prefix)
    for suffix in SUFFIXES:
        text = text.removesuffix(suffix)
    return list(dict.fromkeys([text, text.lower(), text.capitalize(), text.upper()])) if text else []


@torch.no_grad()
def init_embeddings_from_word_vectors(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path, rescale: bool = True
) -> int:
    """
    Set the token embeddings of `model` to pretrained word vectors, where a token is a word (or spells like one).

    Tokens are matched by their text, without the marks of a word's start (Ġ, ▁) or continuation (##), and then in
    other cases, see [`spellings`]. Special tokens, and tokens without a vector, keep what they have. Both halves of an
    encoder-decoder get the vectors.

    rescale: multiply the vectors by one factor, so that their standard deviation is that of the model's
    initialisation; a head that is tied to the embeddings begins with large logits otherwise.

    Returns how many tokens were matched. Raises ValueError if the vectors are not as wide as the embeddings.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_tokens)
    named = {token: spellings(tokenizer, token) for token in vocabulary if token not in special}
    tables = _embeddings(model)
    for table in tables:
        if len(tokenizer) > len(table.weight):
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, but the model `vocab_size={len(table.weight)}`."
            )
    wanted = {spelling for spelled in named.values() for spelling in spelled}
    vectors = load_word_vectors(path, wanted, [table.weight.shape[1] for table in tables])
    found = {token: next((s for s in spelled if s in vectors), None) for token, spelled in named.items()}
    matched = {vocabulary[token]: vectors[spelling] for token, spelling in found.items() if spelling is not None}
    if not matched:
        return 0
    ids, rows = torch.tensor(list(matched)), torch.from_numpy(np.stack(list(matched.values())))
    if rescale and rows.std() > 0:
        rows *= _initial_std(model) / rows.std()
    for table in tables:
        table.weight[ids.to(table.weight.device)] = rows.to(table.weight)
    return len(matched)


def _embeddings(model: PreTrainedModel) -> list[torch.nn.Embedding]:
    """The token embeddings of a model: one, or two where the halves of an encoder-decoder do not share them."""
    tables = [model.get_input_embeddings()]
    if model.config.is_encoder_decoder:
        tables.append(model.get_decoder().get_input_embeddings())
    return list({id(table.weight): table for table in tables}.values())


def _initial_std(model: PreTrainedModel) -> float:
    config = model.config.get_text_config(decoder=True)
    std = getattr(config, "embedding_initializer_range", None)
    return config.initializer_range if std is None else std
