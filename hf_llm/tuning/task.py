"""What a fine-tuning task is: from examples to features, from logits to records, from records to figures."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy
from datasets import Dataset
from transformers import DataCollatorWithPadding

from .encoding import Encoder


class Task(ABC):
    """Base of the tasks; a subclass is a dataclass whose fields are the options of the `task` section.

    Attributes:
        hub_name: the Hub's name of the task.
        auto_class: which head.
        columns: that its examples must have.
        label_names: what of a feature are labels.
        tokenizer_options: for `AutoTokenizer.from_pretrained`.
        needs_offsets: whether the tokenizer must tell which words or characters a token stands for.
    """

    hub_name: ClassVar[str]
    auto_class: ClassVar[type]
    columns: ClassVar[tuple[str, ...]]
    label_names: ClassVar[list[str]] = ["labels"]
    tokenizer_options: ClassVar[dict] = {}
    needs_offsets: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, data: dict[str, Dataset]) -> dict:
        """Look at the splits, and return the fields of the model's configuration that they decide.

        Raises:
            ValueError: labels that make no sense, or differ between splits.
        """

    @abstractmethod
    def encode(self, examples: Dataset, encoder: Encoder) -> Dataset:
        """Features of a split, in order: inputs of the model, labels, and `cut` (bool)."""

    def collator(self, encoder: Encoder) -> Callable:
        """Makes a batch of features."""
        return DataCollatorWithPadding(encoder.tokenizer)

    def shrink(self, logits, labels):
        """What of the outputs of a batch is kept until the evaluation ends: the logits, not the states beside them."""
        return logits[0] if isinstance(logits, tuple) else logits

    @abstractmethod
    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        """One JSON-able record for each example: what was predicted, and what is right.

        Args:
            logits: numpy array (or tuple of arrays) of all features, as `shrink` left them, padded with -100.
        """

    @abstractmethod
    def score(self, records: list[dict]) -> dict[str, float]:
        """Figures of records, by name."""

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list[dict]]:
        """What simpler methods predict on the same examples: name -> records."""
        return {}

    def figures(self, records: list[dict]) -> dict[str, Callable]:
        """File name -> function that draws into a matplotlib `Figure`."""
        return {}


def softmax(logits: numpy.ndarray) -> numpy.ndarray:
    """Probabilities along the last axis."""
    shifted = numpy.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
