"""Streaming samples: the same packing over a corpus that is read as it comes, with an exact position."""

import copy
from collections import deque
from collections.abc import Iterator
from itertools import islice

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .encoding import encode_batch
from .objectives import Objective
from .packing import PER_TOKEN, PackedRows, pack_documents
from .samples import DRAWS, PERMUTATION, assemble_row, generator


DOCUMENTS_PER_READ = 64


class StreamingSamples(torch.utils.data.IterableDataset):
    """Samples packed on the fly from a stream of documents, for ever (the stream starts again at its end).

    Documents are read until they hold `window_rows` rows' worth of tokens; this window is packed as `pack_corpus`
    packs, its rows are shuffled and shown, and the next window is read. A window is a function of the stream's
    position at its start, so a position is small: that of the stream when the window began, and the rows shown since.

    The loader must read it in this process (`dataloader_num_workers=0`): the position lives here.

    Args:
        corpus: stream of documents with a `text` column (for "supervised": `source` and `target`).
        row_length, target_row_length: see `Objective.capacity`.
        seed: of modes, shuffling and draws.
        length: total number of samples, counted from sample 0 of the run; default: no end.
        window_rows: rows per window. More pack tighter and shuffle better, and take longer to start.

    Raises:
        ValueError: rows too short; while iterating: the corpus is empty, or workers are used.
    """

    def __init__(
        self,
        corpus: datasets.IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        row_length: int,
        target_row_length: int | None = None,
        *,
        seed: int = 0,
        length: int | None = None,
        window_rows: int = 512,
    ):
        self.capacity = objective.capacity(row_length, target_row_length)
        self.corpus, self.tokenizer, self.objective = corpus, tokenizer, objective
        self.seed, self.length, self.window_rows = seed, length, window_rows
        self._start = {"sample": 0, "epoch": 0, "stream": None}  # where the first window begins
        self._skip = 0  # rows of the first window that were shown before
        self._windows = deque([self._start])  # starts of windows that may still be asked for
        self._yielded = 0  # samples of the run given out so far

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        if torch.utils.data.get_worker_info() is not None:
            raise ValueError("dataloader_num_workers: must be 0 with a streamed corpus, whose position is kept here")
        skip = self._skip
        self._windows = deque([self._start])
        self._yielded = self._start["sample"] + skip
        if self._yielded == self.length:
            return
        for start, rows in self._read_windows(self._start):
            if self._windows[-1]["sample"] != start["sample"]:
                self._windows.append(start)
            order = generator(self.seed, PERMUTATION, start["sample"]).permutation(len(rows))
            for i in order[skip:]:
                row = assemble_row(rows[i], self.objective, self.capacity, generator(self.seed, DRAWS, self._yielded))
                del row["num_bytes"]
                self._yielded += 1
                yield row
                if self._yielded == self.length:
                    return
            skip = 0

    def state_dict(self, consumed: int | None = None) -> dict:
        """The position after the first `consumed` samples of the run, as plain data for JSON.

        Loaders read ahead: pass the number of samples that training has really used. Default: all that were given
        out. Positions before the one returned are forgotten.

        Raises:
            ValueError: the position is not within what was given out since the last one returned.
        """
        consumed = self._yielded if consumed is None else consumed
        oldest = self._windows[0]["sample"]
        if not oldest <= consumed <= self._yielded:
            raise ValueError(f"consumed={consumed}: must be between {oldest} and {self._yielded}, samples given out")
        while len(self._windows) > 1 and self._windows[1]["sample"] <= consumed:
            self._windows.popleft()
        return {**self._windows[0], "consumed": consumed, "window_rows": self.window_rows}

    def load_state_dict(self, state: dict) -> None:
        """Makes the next iteration go on with sample `state["consumed"]`.

        Raises:
            ValueError: the state comes from another `window_rows`.
        """
        if state["window_rows"] != self.window_rows:
            raise ValueError(f"window_rows={self.window_rows}: the saved position needs {state['window_rows']}")
        self._start = {key: state[key] for key in ("sample", "epoch", "stream")}
        self._skip = state["consumed"] - state["sample"]
        self._windows = deque([self._start])
        self._yielded = state["consumed"]

    def _read_windows(self, start: dict) -> Iterator[tuple[dict, PackedRows]]:
        """Windows from a position on, each with the position at which it begins."""
        while True:
            stream = copy.copy(self.corpus)  # whose own position stays untouched
            stream.set_epoch(start["epoch"])
            if start["stream"] is not None:
                stream.load_state_dict(start["stream"])
            documents = iter(stream)
            while window := self._read_window(documents):
                rows = self._pack(window, start["sample"])
                yield start, rows
                position = {"sample": start["sample"] + len(rows), "stream": stream.state_dict()}
                start = {**start, **position}
            if start["stream"] is None:
                raise ValueError("corpus: the stream holds no document with tokens that fit a row")
            start = {**start, "epoch": start["epoch"] + 1, "stream": None}

    def _read_window(self, documents: Iterator[dict]) -> list[dict[str, list]]:
        """Batches of `encode_batch`'s columns that together hold a window's tokens; [] at the stream's end."""
        window, size = [], 0
        while size < self.window_rows * self.capacity[0] and (read := list(islice(documents, DOCUMENTS_PER_READ))):
            texts = {column: [document[column] for document in read] for column in self.objective.columns}
            encoded = encode_batch(texts, self.tokenizer, self.objective, self.capacity)
            if encoded["length"]:
                window.append(encoded)
                size += sum(encoded["length"])
        return window

    def _pack(self, window: list[dict[str, list]], sample: int) -> PackedRows:
        joined = {key: [value for batch in window for value in batch[key]] for key in window[0]}
        return pack_documents(
            np.array(joined["length"]),
            np.array(joined["mode"]),
            {name: np.concatenate(joined[name]) for name in PER_TOKEN if name in joined},
            self.objective,
            self.capacity,
            (self.seed, sample),
        )
