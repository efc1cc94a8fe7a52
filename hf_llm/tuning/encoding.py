"""Texts to token ids for a task head; what is cut off is counted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import pyarrow.compute
from datasets import Dataset
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from .models import text_limit


logger = logging.getLogger(__name__)

DEFAULT_LENGTH = 512  # where neither the data section nor the model has a limit


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
        return self.tokenizer(
            *texts,
            **{"truncation": True, **options},
            max_length=self.max_length,
            return_token_type_ids=self.token_types,
        )

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


def report_cut(cut: Sequence[bool], split: str, max_length: int) -> str | None:
    """Warn of examples that were cut (one entry for each), and return the sentence, or None if there were none."""
    count, total = sum(cut), len(cut)
    if not count:
        return None
    share = 100 * count / total
    sentence = f"{count:,} of {total:,} {split} examples ({share:.1f} %) are longer than {max_length} tokens: cut."
    logger.warning("data: %s", sentence)
    return sentence
