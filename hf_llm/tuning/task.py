"""What a task is: from examples to features, from logits to records, from records to figures."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedConfig

from .examples import Encoder


IGNORED = -100  # label of what is no target
Draw = Callable[["matplotlib.figure.Figure"], None]  # noqa: F821 - matplotlib is imported where figures are drawn


class Task(ABC):
    """Base of the tasks; a subclass is a dataclass whose fields are the options of the `task` section.

    Attributes:
        hub_name: the Hub's name of the task.
        auto_class: which head.
        columns: that its examples must have.
        token_columns: of its features that are token ids.
        label_names: columns of its features that are labels.
        predicts: what of a record is predicted.
        collator: class that makes a batch of features, given the tokenizer.
        tokenizer_options: for `AutoTokenizer.from_pretrained`.
        needs_offsets: whether the tokenizer must tell which words or characters a token stands for.
    """

    hub_name: ClassVar[str]
    auto_class: ClassVar[type]
    columns: ClassVar[tuple[str, ...]]
    token_columns: ClassVar[tuple[str, ...]] = ("input_ids",)
    label_names: ClassVar[list[str]] = ["labels"]
    predicts: ClassVar[str] = "prediction"
    collator: ClassVar[type] = DataCollatorWithPadding
    tokenizer_options: ClassVar[dict] = {}
    needs_offsets: ClassVar[bool] = False

    def prepare(self, data: dict[str, Dataset], head: PreTrainedConfig | None = None) -> dict:
        """Look at the splits, and return the fields of the model's configuration that they decide.

        Args:
            head: configuration of a model whose head is trained for this task already, and decides the classes.

        Raises:
            ValueError: labels that make no sense, or differ between splits.
        """
        return {}

    def encode(self, examples: Dataset, encoder: Encoder) -> Dataset:
        """Features of a split, in order: inputs of the model, labels, and `cut` (bool)."""
        return examples.map(
            self.encode_batch,
            batched=True,
            with_indices=True,
            fn_kwargs={"encoder": encoder},
            remove_columns=examples.column_names,
            desc="Tokenizing",
        )

    @abstractmethod
    def encode_batch(self, batch: dict[str, list], numbers: list[int], encoder: Encoder) -> dict[str, list]:
        """Features of a few examples and their numbers, by column."""

    def collate(self, encoder: Encoder) -> Callable:
        """Makes a batch of features."""
        return self.collator(encoder.tokenizer)

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

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list]:
        """What simpler methods predict on the same examples: name -> one prediction for each record."""
        return {}

    def figures(self, records: list[dict]) -> dict[str, Draw]:
        """File name -> function that draws into a matplotlib `Figure`."""
        return {}


def softmax(logits: numpy.ndarray) -> numpy.ndarray:
    """Probabilities along the last axis."""
    logits = numpy.asarray(logits)
    shifted = numpy.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
