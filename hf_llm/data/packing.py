"""Packing documents into fixed rows.

A document is tokenized, cut into chunks no longer than a row, and the chunks of all documents are laid into rows by
best-fit decreasing (https://arxiv.org/abs/2404.10830): every token is in exactly one row, and next to no padding is
left. What is stored are the chunks' raw tokens; the objective corrupts and frames them when a sample is drawn. Their
lengths after that are known beforehand (`Objective.lengths`), so both halves of an encoder-decoder's row always fit.
"""

import copy
import functools
import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from . import sources
from .encoding import encode_batch
from .objectives import Objective


FORMAT = 1  # raise it whenever stored rows would come out differently
PER_TOKEN = ("tokens", "token_bytes", "word_starts")  # the last one only of objectives that choose words
INDEX = ("chunk_start", "chunk_length", "chunk_mode", "row_start")


@dataclass(frozen=True)
class Chunk:
    """A piece of a document: token ids, the UTF-8 bytes each covers, its mode (see `Kind.has_mode`), and of objectives
    that choose words, which tokens begin one (see [`hf_llm.data.encoding.word_starts`])."""

    ids: np.ndarray
    token_bytes: np.ndarray
    mode: int
    word_starts: np.ndarray | None


@dataclass(frozen=True)
class PackedRows:
    """Rows of chunks, as flat arrays. Loaded from disk, they are memory-mapped, and pickled as the folder's path.

    Attributes:
        tokens: ids of all documents, one after the other.
        token_bytes: UTF-8 bytes of the text that each token covers, white space before it included; 0 for specials.
        chunk_start, chunk_length, chunk_mode: each chunk's place in `tokens` and its mode, in the order of rows.
        row_start: (rows + 1,) first chunk of each row.
        capacity: sizes of a row: (row_length,) or (row_length, target_row_length).
        report: figures: `objective`, `stack`, `rows`, `documents`, `chunks`, `tokens`, `bytes`, `bytes_per_token`,
            `row_length`, `fill` (share of real tokens), `target_row_length` and `target_fill` (of an encoder-decoder),
            `dropped_documents`, `tokens_per_second`, `fingerprint`. Where lengths depend on draws (BART's source,
            prefix-LM's halves), the fills are measured on up to 256 rows.
        word_starts: which tokens begin a word, bool; None unless the objective chooses words.
        folder: where the rows were loaded from.
    """

    tokens: np.ndarray
    token_bytes: np.ndarray
    chunk_start: np.ndarray
    chunk_length: np.ndarray
    chunk_mode: np.ndarray
    row_start: np.ndarray
    capacity: tuple[int, ...]
    report: dict
    word_starts: np.ndarray | None = None
    folder: Path | None = None

    def __getstate__(self) -> dict | Path:
        return self.folder or vars(self)

    def __setstate__(self, state: dict | Path) -> None:
        vars(self).update(state if isinstance(state, dict) else vars(self.load(state)))

    def __len__(self) -> int:
        return len(self.row_start) - 1

    def __getitem__(self, row: int) -> list[Chunk]:
        chunks = []
        for i in range(self.row_start[row], self.row_start[row + 1]):
            part = slice(self.chunk_start[i], self.chunk_start[i] + self.chunk_length[i])
            ids, num_bytes = (np.asarray(column[part], np.int64) for column in (self.tokens, self.token_bytes))
            starts = None if self.word_starts is None else np.asarray(self.word_starts[part])
            chunks.append(Chunk(ids, num_bytes, int(self.chunk_mode[i]), starts))
        return chunks

    def save_index(self, folder: Path) -> None:
        """Writes all but what there is of each token, which was written as it came; the report last."""
        for name in INDEX:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        report = json.dumps({"capacity": self.capacity, **self.report}, indent=1)
        (folder / "report.json").write_text(report, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "PackedRows":
        """Opens saved rows; the arrays are memory-mapped."""
        folder = folder.absolute()
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        capacity = tuple(report.pop("capacity"))
        paths = (folder / f"{name}.npy" for name in (*PER_TOKEN, *INDEX))
        arrays = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in paths if p.is_file()}
        return cls(**arrays, capacity=capacity, report=report, folder=folder)


def best_fit(lengths: np.ndarray, capacity: tuple[int, ...]) -> list[list[int]]:
    """Best-fit decreasing: the longest item first, each into the fullest row that still takes it.

    Args:
        lengths: (items, dimensions) ints, each within `capacity`.
        capacity: (dimensions,) size of a row.

    Returns:
        Item indices per row. The same input gives the same rows.
    """
    tightest = int(np.argmax(lengths.sum(0) / capacity)) if len(lengths) else 0  # the half that decides
    order = np.argsort(-lengths[:, tightest], kind="stable")
    smallest = lengths.min(0) if len(lengths) else capacity
    rows: list[list[int]] = []
    room: list[list[int]] = []  # left in each row
    by_room: dict[int, list[int]] = {}  # room in the tightest half -> open rows
    occupied = 0  # bit r is set where by_room[r] is not empty

    def find(need: list[int]) -> int | None:
        """Takes the fullest open row with room for `need` out of `by_room`."""
        nonlocal occupied
        candidates = occupied >> need[tightest] << need[tightest]
        while candidates:
            r = (candidates & -candidates).bit_length() - 1
            candidates &= candidates - 1
            for position, row in enumerate(by_room[r]):
                if all(n <= left for n, left in zip(need, room[row], strict=True)):
                    by_room[r].pop(position)
                    if not by_room[r]:
                        occupied &= ~(1 << r)
                    return row
        return None

    for item in order.tolist():
        need = lengths[item].tolist()
        row = find(need)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(list(capacity))
        rows[row].append(item)
        room[row] = [left - n for n, left in zip(need, room[row], strict=True)]
        if all(left >= least for left, least in zip(room[row], smallest, strict=True)):
            by_room.setdefault(room[row][tightest], []).append(row)
            occupied |= 1 << room[row][tightest]
    return rows


def pack_documents(
    lengths: np.ndarray,
    modes: np.ndarray,
    per_token: dict[str, np.ndarray],
    objective: Objective,
    capacity: tuple[int, ...],
    seed: int | tuple[int, ...],
) -> PackedRows:
    """Packs tokenized documents that lie one after the other.

    Args:
        lengths: (documents,) tokens of each.
        modes: (documents,) source tokens of each pair. Pairs are not cut, and must fit; else ignored.
        per_token: `tokens`, `token_bytes` and, of objectives that choose words, `word_starts` of `PackedRows`.
        seed: of the modes drawn for chunks.
    """
    longest_chunk = functools.cache(functools.partial(objective.longest_chunk, capacity))
    room_needed = functools.cache(objective.lengths)
    if not objective.pairs and longest_chunk(0) < 2:
        raise ValueError(f"row_length={capacity}: too short for {objective.name!r}: not even two tokens fit")
    rng = np.random.default_rng(seed)

    def cut(length: int, mode: int):
        if objective.pairs:
            yield length, mode
            return
        while length:
            mode = objective.draw_mode(rng)
            size = min(length, longest_chunk(mode))
            yield size, mode
            length -= size

    chunks = [c for document in zip(lengths.tolist(), modes.tolist(), strict=True) for c in cut(*document)]
    length, mode = np.array(chunks, np.int64).T
    start = np.cumsum(length) - length
    needs = np.array([room_needed(*chunk) for chunk in chunks])
    rows = best_fit(needs, capacity)
    order = np.concatenate([np.sort(row) for row in rows])
    num_bytes = int(np.sum(per_token["token_bytes"], dtype=np.int64))
    fills = needs.sum(0) / (len(rows) * np.array(capacity))
    report = {
        "objective": objective.name,
        "stack": objective.stack,
        "rows": len(rows),
        "documents": len(lengths),
        "chunks": len(chunks),
        "tokens": int(length.sum()),
        "bytes": num_bytes,
        "bytes_per_token": float(num_bytes / length.sum()),
        **dict(zip(("row_length", "target_row_length"), capacity, strict=False)),
        **dict(zip(("fill", "target_fill"), fills.tolist(), strict=False)),
    }
    packed = PackedRows(
        **per_token,
        chunk_start=start[order],
        chunk_length=length[order].astype(np.int32),
        chunk_mode=mode[order].astype(np.int32),
        row_start=np.cumsum([0, *map(len, rows)]),
        capacity=capacity,
        report=report,
    )
    if not objective.exact_lengths:
        report |= _measured_fill(packed, objective, rng)
    return packed


def _measured_fill(rows: PackedRows, objective: Objective, rng: np.random.Generator) -> dict[str, float]:
    """Share of real tokens in both halves of evenly spaced rows, with the objective's draws."""
    shown = np.unique(np.linspace(0, len(rows) - 1, 256).astype(int)).tolist()
    examples = [objective(c.ids, rng, c.mode, c.word_starts) for row in shown for c in rows[row]]
    source, target = sum(len(e.source) for e in examples), sum(len(e.target) for e in examples)
    return {
        "fill": source / (len(shown) * rows.capacity[0]),
        "target_fill": target / (len(shown) * rows.capacity[1]),
    }


def pack_corpus(
    corpus: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    row_length: int,
    target_row_length: int | None = None,
    *,
    num_proc: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    seed: int = 0,
) -> PackedRows:
    """Tokenizes and packs a corpus, or opens the rows from the cache if the same has been asked before.

    Args:
        corpus: documents with a `text` column; for "supervised", pairs with `source` and `target` columns.
        row_length, target_row_length: see `Objective.capacity`.
        num_proc: processes that tokenize; None: this one (the tokenizer has threads of its own).
        cache_dir: default: below the datasets cache. The cache's key is made of the tokenizer, the corpus' contents,
            the objective and the lengths.
        seed: of the modes drawn for chunks (UL2).

    Raises:
        ValueError: rows too short, an empty corpus, a missing column, pairs of which none fits a row.
    """
    capacity = objective.capacity(row_length, target_row_length)
    if missing := [column for column in objective.columns if column not in corpus.column_names]:
        raise ValueError(f"corpus: objective {objective.name!r} needs columns {missing}; it has {corpus.column_names}")
    root = Path(cache_dir or sources.cache_dir() / "packed")
    fingerprint = _fingerprint(corpus, tokenizer, objective, capacity, seed)

    def make(folder: Path) -> None:
        _write_rows(corpus, tokenizer, objective, capacity, num_proc, seed, folder, fingerprint)

    sources.make_once(root / fingerprint, make)
    return PackedRows.load(root / fingerprint)


def _write_rows(corpus, tokenizer, objective, capacity, num_proc, seed, folder, fingerprint) -> None:
    """Tokenizes and packs into files in `folder`. Nothing keeps them open: Windows would not rename the folder."""
    start = time.perf_counter()
    id_type = np.min_scalar_type(len(objective.tokens.is_special) - 1)
    types = dict(zip(PER_TOKEN, (id_type, np.uint32, np.bool)[: 2 + objective.whole_words], strict=False))
    features = {name: datasets.List(datasets.Value(np.dtype(kind).name)) for name, kind in types.items()}
    features |= {name: datasets.Value("int64") for name in ("length", "mode")}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        encoded = corpus.map(
            encode_batch,
            batched=True,
            batch_size=64,
            num_proc=num_proc,
            remove_columns=corpus.column_names,
            fn_kwargs={"tokenizer": tokenizer, "objective": objective, "capacity": capacity},
            features=datasets.Features(features),
            cache_file_name=os.path.join(scratch, "encoded.arrow"),
            new_fingerprint=fingerprint,
            desc="Tokenizing",
        )
        seconds = time.perf_counter() - start
        if not len(encoded):
            raise ValueError(f"corpus: none of its {len(corpus)} documents has tokens that fit rows of {capacity}")
        index = encoded.select_columns(["length", "mode"]).with_format("numpy")[:]
        total = int(index["length"].sum())
        per_token = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (total,))
            for name, kind in types.items()
        }
        at = 0
        for table in encoded.with_format("arrow").iter(batch_size=1000):
            for name, array in per_token.items():
                values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                array[at : at + len(values)] = values
            at += len(values)
        dropped = len(corpus) - len(encoded)
        del encoded, table
    rows = pack_documents(index["length"], index["mode"], per_token, objective, capacity, seed)
    rows.report["dropped_documents"] = dropped
    rows.report["tokens_per_second"] = total / seconds
    rows.report["fingerprint"] = fingerprint
    rows.save_index(folder)


def _fingerprint(corpus, tokenizer, objective, capacity, seed) -> str:
    """Key of the cache: whatever changes the stored rows changes it."""
    digest = hashlib.sha256()
    settings = {
        "format": FORMAT,
        "tokenizer": _what_decides_ids(tokenizer),
        "special_ids": objective.tokens.ids,
        "objective": [objective.name, objective.stack, objective.options],
        "capacity": capacity,
        "seed": seed,
        **({"words": "of the text"} if objective.whole_words else {}),  # their rows hold more than others
    }
    if not type(objective).__module__.startswith("hf_llm."):
        settings["code"] = sources.code_of(type(objective))
    digest.update(json.dumps(settings, sort_keys=True, default=repr).encode("utf-8"))
    for table in corpus.select_columns(objective.columns).with_format("arrow").iter(batch_size=1000):
        for column in objective.columns:
            for text in table[column].to_pylist():
                data = text.encode("utf-8")
                digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:24]


def _what_decides_ids(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer as text, without the padding and truncation that its last call left behind."""
    if not tokenizer.is_fast:
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str()
