"""Training and evaluation samples: map-style datasets whose samples are pure functions of their global index."""

import functools

import numpy as np
import torch

from .objectives import IGNORE, Objective
from .packing import Chunk, PackedRows


# Streams of random numbers that never meet: (seed, stream, index) seeds a generator.
PERMUTATION, DRAWS, EVALUATION = range(3)


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """The random generator of one index of one stream."""
    return np.random.default_rng((seed, stream, index))


@functools.lru_cache(maxsize=2)
def _row_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order in which an epoch shows the rows. Kept here, not in the samples, which are pickled for workers."""
    return generator(seed, PERMUTATION, epoch).permutation(rows)


def assemble_row(
    chunks: list[Chunk], objective: Objective, capacity: tuple[int, ...], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws the objective for each chunk and lays the examples side by side.

    Returns:
        int64 arrays (row_length,): `input_ids`, `position_ids` (from 0 in each document), `document_ids` (0, 1, ...;
        -1 on padding), `labels`. For an encoder-decoder also (target_row_length,) `decoder_input_ids` (the labels
        shifted right within each document), `decoder_position_ids`, `decoder_document_ids`, and `labels` of that
        length. And `num_bytes`, a scalar: UTF-8 bytes of the text covered by the predicted tokens.
    """
    examples = [objective(chunk.ids, rng, chunk.mode, chunk.word_starts) for chunk in chunks]
    sources = [e.source for e in examples]
    targets = [e.target for e in examples]
    pad = objective.tokens.ids["pad"]
    row = {"input_ids": _lay(sources, capacity[0], pad), **_places(sources, capacity[0], "")}
    if objective.stack == "encoder-decoder":
        start = [objective.decoder_start_token_id]
        shifted = [np.concatenate((start, t[:-1])) for t in targets]
        row["decoder_input_ids"] = _lay(shifted, capacity[1], pad)
        row |= _places(targets, capacity[1], "decoder_")
    row["labels"] = _lay(targets, capacity[-1], IGNORE)
    num_bytes = sum(int(c.token_bytes[e.predicted].sum()) for c, e in zip(chunks, examples, strict=True))
    return row | {"num_bytes": np.array(num_bytes, np.int64)}


def _lay(parts: list[np.ndarray], length: int, filler: int) -> np.ndarray:
    """The parts one after the other, filled up to (length,)."""
    row = np.full(length, filler, np.int64)
    whole = np.concatenate(parts)
    row[: len(whole)] = whole
    return row


def _places(parts: list[np.ndarray], length: int, prefix: str) -> dict[str, np.ndarray]:
    sizes = [len(part) for part in parts]
    return {
        f"{prefix}position_ids": _lay([np.arange(size) for size in sizes], length, 0),
        f"{prefix}document_ids": _lay([np.repeat(np.arange(len(sizes)), sizes)], length, -1),
    }


class _Samples(torch.utils.data.Dataset):
    """Samples 0 to `length` of packed rows."""

    def __init__(self, rows: PackedRows, objective: Objective, seed: int, length: int):
        packed_for = [rows.report["objective"], rows.report["stack"]]
        if packed_for != [objective.name, objective.stack]:
            raise ValueError(
                f"rows: packed for {packed_for}, not for {[objective.name, objective.stack]}; pack them again"
            )
        self.rows, self.objective, self.seed, self.length = rows, objective, seed, length

    def __len__(self) -> int:
        return self.length

    def _assembled(self, n: int, row: int, stream: int) -> dict[str, np.ndarray]:
        if not 0 <= n < self.length:
            raise IndexError(f"sample {n} of {self.length}")
        draws = generator(self.seed, stream, n)
        return assemble_row(self.rows[row], self.objective, self.rows.capacity, draws)


class TrainingSamples(_Samples):
    """An endless, shuffled pass over packed rows, of which the first `length` samples are shown.

    `samples[n]` is row `permutation(seed, epoch)[n % rows]` of epoch `n // rows`, with the objective's draws seeded by
    (seed, n). It depends on nothing else, so a run that goes on at sample n sees what it would have seen, whatever
    the number of processes and workers. Read it in order: the loader must not shuffle.

    Args:
        rows: packed rows.
        objective: the one that the rows were packed for.
        seed: of the permutations and the draws.
        length: number of samples, e.g. steps x global batch size. Default: one epoch.
    """

    def __init__(self, rows: PackedRows, objective: Objective, seed: int = 0, length: int | None = None):
        super().__init__(rows, objective, seed, len(rows) if length is None else length)

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        """Sample n; see `assemble_row`, without `num_bytes`."""
        epoch, position = divmod(n, len(self.rows))
        row = self._assembled(n, _row_order(self.seed, epoch, len(self.rows))[position], DRAWS)
        del row["num_bytes"]
        return row


class EvaluationSamples(_Samples):
    """Every packed row once, in order, always with the same draws; each sample carries `num_bytes`.

    Args: as those of `TrainingSamples`; `length` is the number of rows shown, by default all.
    """

    def __init__(self, rows: PackedRows, objective: Objective, seed: int = 0, length: int | None = None):
        super().__init__(rows, objective, seed, len(rows) if length is None else min(length, len(rows)))

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        """Row n; see `assemble_row`."""
        return self._assembled(n, n, EVALUATION)


def collate(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stacks samples: int64 tensors (batch, row_length), and `num_bytes` (batch,) where the samples have it."""
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}
