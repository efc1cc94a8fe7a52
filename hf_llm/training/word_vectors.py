"""Initial embeddings from pretrained word vectors.

Files: text of word2vec, fastText and GloVe (a word and its numbers on each line, with or without a line `count
dimension` at the top), and the binary format of word2vec (https://code.google.com/archive/p/word2vec/); each may be
compressed with gzip. They are streamed: only the vectors that are asked for are held in memory.
"""

import gzip
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 2**20  # bytes read at a time
PREFIXES, SUFFIXES = ("Ġ", "▁", "##"), ("</w>",)  # what tokenizers mark the ends of words with


class WordVectorFile:
    """An open file of word vectors. Text or binary is told by its contents.

    Attributes:
        dimension: the length of its vectors.
        count: how many it says it has, or None.
        binary: whether it is in word2vec's binary format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __enter__(self):
        with open(self.path, "rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
        self._file = gzip.open(self.path, "rb") if compressed else open(self.path, "rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *error):
        self._file.close()

    def _read_header(self) -> None:
        first = self._file.readline(CHUNK).split()
        self.binary, self.count = False, None
        if len(first) == 2 and all(field.isdigit() for field in first):
            self.count, self.dimension = int(first[0]), int(first[1])
            start = self._file.tell()
            self.binary = self.count > 0 and not _is_text(self._file.readline(CHUNK), self.dimension)
            self._file.seek(start)
        else:
            self.dimension = len(first) - 1
            self._file.seek(0)
        if self.dimension < 1:
            raise ValueError(f"{self.path} has no word vectors: its first line must be a word and its numbers.")

    def read(self, words: Container[str] | None = None) -> dict[str, np.ndarray]:
        """The vectors (dimension,) float32 of `words`, or all; the first counts where a word comes twice.

        Raises ValueError, with the place, at what is no vector of `dimension` numbers, and if vectors are missing.
        """
        vectors, seen = {}, 0
        for word, vector in self._binary_records(words) if self.binary else self._text_records(words):
            seen += 1
            if vector is not None:
                vectors.setdefault(word, vector)
        if self.count is not None and seen < self.count:
            raise ValueError(f"{self.path} is cut off: it has {seen} of {self.count} vectors.")
        return vectors

    def _text_records(self, words: Container[str] | None) -> Iterator[tuple[str, np.ndarray | None]]:
        """Words and vectors; None for a vector that nobody wants."""
        first_line = 1 if self.count is None else 2
        for number, line in enumerate(self._file, start=first_line):
            if not line.strip():
                continue
            word = line.split(b" ", 1)[0]
            if words is not None and _decode(word) not in words:
                yield _decode(word), None
                continue
            word, *values = line.rstrip().rsplit(b" ", self.dimension)  # a word may have blanks in it (GloVe 840B)
            try:
                vector = np.array([float(value) for value in values], dtype=np.float32)
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}.") from None
            if len(vector) != self.dimension:
                raise ValueError(
                    f"{self.path}, line {number}: {len(vector)} numbers, but the vectors have {self.dimension}."
                )
            word = _decode(word)
            yield word, vector if words is None or word in words else None

    def _binary_records(self, words: Container[str] | None) -> Iterator[tuple[str, np.ndarray | None]]:
        """A word, a blank and its numbers (float32, little-endian), with or without a line's end between records."""
        size = 4 * self.dimension
        buffer, start = b"", 0
        for _ in range(self.count):
            while (blank := buffer.find(b" ", start)) < 0 or len(buffer) - blank - 1 < size:
                chunk = self._file.read(CHUNK)
                if not chunk:
                    return
                buffer, start = buffer[start:] + chunk, 0
            word = _decode(buffer[start:blank].lstrip(b"\n"))
            start = blank + 1 + size
            vector = None
            if words is None or word in words:
                vector = np.frombuffer(buffer, dtype="<f4", count=self.dimension, offset=blank + 1).astype(np.float32)
            yield word, vector


def _decode(word: bytes) -> str:
    return word.decode("utf-8", errors="replace")


def _is_text(line: bytes, dimension: int) -> bool:
    """Whether `line` ends in as many numbers."""
    _, *values = line.rsplit(maxsplit=dimension) or [b""]
    try:
        return len([float(value) for value in values]) == dimension
    except ValueError:
        return False


def load_word_vectors(path: str | Path, words: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The vectors (dimension,) float32 of `words` in a file of word2vec, fastText or GloVe, or all of them."""
    with WordVectorFile(path) as file:
        return file.read(words)


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
    named = {token: spellings(tokenizer, token) for token in tokenizer.get_vocab()}
    special = set(tokenizer.all_special_tokens)
    wanted = {spelling for token, spelled in named.items() if token not in special for spelling in spelled}
    tables = _embeddings(model)
    with WordVectorFile(path) as file:
        for table in tables:
            _check_fit(table, tokenizer, file)
        vectors = file.read(wanted)

    matched = {}
    for token, index in tokenizer.get_vocab().items():
        found = next((spelling for spelling in named[token] if spelling in vectors), None)
        if found is not None and token not in special:
            matched[index] = vectors[found]
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


def _check_fit(table: torch.nn.Embedding, tokenizer: PreTrainedTokenizerBase, file: WordVectorFile) -> None:
    rows, width = table.weight.shape
    if width != file.dimension:
        raise ValueError(
            f"{file.path} has vectors of {file.dimension} dimensions, but the model's embeddings have {width}: choose "
            f"`hidden_size={file.dimension}`, or `embedding_size={file.dimension}` with `embedding_projection`."
        )
    if len(tokenizer) > rows:
        raise ValueError(f"The tokenizer has {len(tokenizer)} tokens, but the model `vocab_size={rows}`.")


def _initial_std(model: PreTrainedModel) -> float:
    config = model.config.get_text_config(decoder=True)
    std = getattr(config, "embedding_initializer_range", None)
    return config.initializer_range if std is None else std
