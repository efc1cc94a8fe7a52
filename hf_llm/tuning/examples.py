"""Labelled examples: what a split must have, the classes of a column, texts as token ids."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import pyarrow.compute
from datasets import ClassLabel, Dataset
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from hf_llm.training.opening import text_limit
from hf_llm.training.settings import suggestion


logger = logging.getLogger(__name__)

DEFAULT_LENGTH = 512  # tokens of a text, where neither the data section nor the model has a limit
_TEXTS = {"text", "text_pair", "question", "context"}
_LISTS = {"words", "choices"}


def check_columns(data: dict[str, Dataset], columns: Sequence[str]) -> None:
    """Check that every split has the columns that a task reads, and texts in those of texts.

    Raises:
        ValueError: naming the missing column, those that exist, and the likely one; or the row that has no text.
    """
    for split, examples in data.items():
        for column in columns:
            if column not in examples.column_names:
                raise ValueError(
                    f"data: the {split} split has no column {column!r}{suggestion(column, examples.column_names)}. "
                    f"Its columns are {', '.join(examples.column_names)}: map them with data.dataset: {{name: ..., "
                    f"columns: {{{column}: ...}}}}"
                )
        for column in sorted((_TEXTS | _LISTS) & {*columns, "text_pair"} & set(examples.column_names)):
            check_texts(examples, column, split, lists=column in _LISTS)


def check_texts(examples: Dataset, column: str, split: str, lists: bool = False) -> None:
    """Raise ValueError on the first row of a split whose `column` is no text, or no list of texts."""
    for i, value in enumerate(examples[column]):
        texts = (value if isinstance(value, list) else [None]) if lists else [value]
        if not all(isinstance(text, str) for text in texts):
            kind = "list of texts" if lists else "text"
            raise ValueError(f"data: example {i} of {split} has {value!r} as {column!r}, which is no {kind}")


# ---- classes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """The classes of a column: their names, and the number of the class that each value of the column stands for."""

    names: list[str]
    places: dict

    def numbers(self, values: list) -> list[int]:
        return [self.places[value] for value in values]


def find_classes(data: dict[str, Dataset], column: str, head: PreTrainedConfig | None = None) -> Classes:
    """
    The classes in a column of classes, or of lists of them: as the data declares them, else its sorted values.

    Args:
        head: configuration of a model whose trained head decides the classes; values are its names, or numbers.

    Raises:
        ValueError: values that are no classes, fewer than two classes, classes that the training split or the trained
            head lacks.
    """
    found = {split: set(_flat(examples[column])) for split, examples in data.items()}
    declared = {split: names for split, examples in data.items() if (names := _declared_names(examples, column))}
    if head is not None:
        return _classes_of_head(set().union(*found.values()), next(iter(declared.values()), None), head)
    if declared:
        names = declared["train"]
        for split, others in declared.items():
            if others != names:
                raise ValueError(f"data: the classes of {column!r} differ: {names} in train, {others} in {split}")
        for split, values in found.items():
            if wrong := [value for value in values if value not in range(len(names))]:
                raise ValueError(
                    f"data: {column!r} of {split} has {wrong[0]}, which is none of the classes 0 to {len(names) - 1}. "
                    f"Where labels are kept back (-1), name a split that has them as data.dataset.splits.{split}"
                )
        return Classes(names, {number: number for number in range(len(names))})
    if wrong := [v for values in found.values() for v in values if not isinstance(v, (str, int))]:
        raise ValueError(f"data: {column!r} has {wrong[0]!r}, which is no class; for numbers take task: regression")
    known = sorted(found["train"])
    for split, values in found.items():
        if unknown := sorted(values - found["train"]):
            raise ValueError(
                f"data: {column!r} has classes in {split} that train does not have: {unknown}; train has {known}"
            )
    if len(known) < 2:
        raise ValueError(f"data: {column!r} has one class only, {known}: there is nothing to learn")
    return Classes([str(value) for value in known], {value: place for place, value in enumerate(known)})


def _classes_of_head(values: set, declared: list[str] | None, head: PreTrainedConfig) -> Classes:
    names = [head.id2label[number] for number in range(head.num_labels)]
    if declared is None and all(isinstance(value, int) for value in values):
        if wrong := sorted(values - set(range(len(names)))):
            raise ValueError(f"data: label {wrong[0]} is unknown to the model; it has 0 to {len(names) - 1}")
        return Classes(names, {number: number for number in range(len(names))})
    called = {value: declared[value] if declared else str(value) for value in values}
    if unknown := sorted(set(called.values()) - set(head.label2id)):
        raise ValueError(
            f"data: labels {', '.join(unknown)} are unknown to the model; it has {', '.join(head.label2id)}"
        )
    return Classes(names, {value: head.label2id[name] for value, name in called.items()})


def _declared_names(examples: Dataset, column: str) -> list[str] | None:
    feature = examples.features[column]
    feature = getattr(feature, "feature", feature)  # of lists, that of their entries
    return feature.names if isinstance(feature, ClassLabel) else None


def _flat(values) -> list:
    return [v for value in values for v in (value if isinstance(value, list) else [value])]


# ---- token ids ------------------------------------------------------------------------------------------------------


@dataclass
class Encoder:
    """A tokenizer with the run's length.

    Attributes:
        max_length: tokens of a text (or pair), special tokens included.
        token_types: whether the model has an embedding for which text of a pair a token belongs to.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    token_types: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, max_length: int | None) -> "Encoder":
        """
        An encoder that pads on the right, where labels and offsets of tokens expect it, whatever the tokenizer says.

        Raises:
            ValueError: `max_length` is more than the model can read, or nothing.
        """
        limit = text_limit(config, tokenizer)
        if max_length is not None and not 0 < max_length <= (limit or max_length):
            legal = f"1 to {limit}" if limit else "at least 1"
            raise ValueError(f"data.max_length = {max_length}: the model and its tokenizer read {legal} tokens")
        tokenizer.padding_side = "right"
        token_types = bool(getattr(config, "type_vocab_size", 0))
        return cls(tokenizer, max_length or min(limit or DEFAULT_LENGTH, DEFAULT_LENGTH), token_types)

    def __call__(self, *texts, **options) -> BatchEncoding:
        """Ids of a batch of texts or pairs, cut at `max_length`."""
        options = {"truncation": True, "return_token_type_ids": self.token_types, **options}
        return self.tokenizer(*texts, max_length=self.max_length, **options)

    def was_cut(self, batch: BatchEncoding, *texts) -> list[bool]:
        """Which texts of a batch that was made of `texts` lost their ends."""
        if batch.is_fast:
            return [bool(encoding.overflowing) for encoding in batch.encodings]
        whole = self.tokenizer(*texts, verbose=False)["input_ids"]  # Python tokenizers do not say what they cut
        return [len(ids) > self.max_length for ids in whole]


def check_tokens(features: Dataset, split: str, column: str = "input_ids") -> None:
    """Raise ValueError on the first example of which the tokenizer makes no token at all."""
    ids = features.with_format("arrow")[:][column].combine_chunks()
    rows = numpy.arange(len(ids))
    if pyarrow.types.is_list(ids.type.value_type):  # of the choices of a question
        rows, ids = pyarrow.compute.list_parent_indices(ids).to_numpy(), ids.flatten()
    empty = rows[pyarrow.compute.list_value_length(ids).to_numpy() == 0]
    if len(empty):
        number = features["example"][empty[0]] if "example" in features.column_names else empty[0]
        raise ValueError(
            f"data: the text of example {number} of {split} has no tokens, and the tokenizer adds none: leave it out"
        )


def report_cut(cut: Sequence[bool], split: str, max_length: int) -> list[str]:
    """Warn of examples that were cut (one entry for each); the same as a sentence for the card, if there are any."""
    count, total = sum(cut), len(cut)
    if not count:
        return []
    share = 100 * count / total
    sentence = f"{count:,} of {total:,} {split} examples ({share:.1f} %) are longer than {max_length} tokens: cut."
    logger.warning("data: %s", sentence)
    return [sentence]
