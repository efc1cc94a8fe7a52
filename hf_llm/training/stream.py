"""A stream of samples seen as a map-style dataset, so that streamed and packed corpora train by the same code."""

from collections.abc import Iterator

from torch.utils.data import Dataset, IterableDataset


class StreamByIndex(Dataset):
    """Sample n of a stream, for n asked in increasing order (each process reads its own and passes over the others).

    Args:
        stream: a `StreamingSamples`.
        length: number of samples of the run.
    """

    def __init__(self, stream: IterableDataset, length: int):
        self.stream = stream
        self.length = length
        self._next = 0
        self._iterator: Iterator | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, n: int) -> dict:
        if not self._next <= n < self.length:
            raise IndexError(f"sample {n} of a stream that is at {self._next} and ends at {self.length}")
        self._advance(n)
        self._next += 1
        return next(self._iterator)

    def _advance(self, n: int) -> None:
        if self._iterator is None:
            self._iterator = iter(self.stream)
        for _ in range(n - self._next):
            next(self._iterator)
        self._next = n

    def state_dict(self, consumed: int) -> dict:
        """JSON-able position at which `consumed` samples have been trained on (loaders run ahead of that)."""
        self._advance(max(consumed, self._next))
        return {"consumed": consumed, "stream": self.stream.state_dict(consumed=consumed)}

    def load_state_dict(self, state: dict) -> None:
        """Go on with sample `state["consumed"]`."""
        self.stream.load_state_dict(state["stream"])
        self._next, self._iterator = state["consumed"], None
