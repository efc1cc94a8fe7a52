"""Long texts cut into documents, none of them lost: what makes a corpus of one file, which has a held-out part."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import datasets


logger = logging.getLogger(__name__)

MANNERS = ("blank_lines", "paragraphs", "words")
DOCUMENTS = 40  # that a single text is cut into at least, if it has so many paragraphs
MAX_WORDS = 1000  # of a document of one that is cut unasked


@dataclass(frozen=True)
class SplitDocuments:
    """How texts are cut.

    Attributes:
        by: "blank_lines" makes a document of each block between blank lines; "paragraphs" joins neighbouring blocks as
            long as they have at most `max_words` words together; "words" cuts after every `max_words` words.
        max_words: words, that is runs of characters between white space.
    """

    by: str = "paragraphs"
    max_words: int = MAX_WORDS

    def __post_init__(self):
        if self.by not in MANNERS:
            raise ValueError(f"split_documents.by = {self.by!r} is unknown; legal: {', '.join(MANNERS)}")
        if not isinstance(self.max_words, int) or self.max_words < 1:
            raise ValueError(f"split_documents.max_words = {self.max_words!r} must be a whole number, at least 1")

    def __call__(self, text: str) -> Iterator[str]:
        """The documents of a text, in order; joined they are the text."""
        unit = r"\S+\s*" if self.by == "words" else r".*?(?:\n(?:[ \t]*\n)+|\Z)"
        limit = 0 if self.by == "blank_lines" else self.max_words
        parts, words = [], 0
        leading = text[: len(text) - len(text.lstrip())]
        for match in re.compile(unit, re.DOTALL).finditer(text, len(leading)):
            part = match[0]
            count = len(part.split())
            if words and count and words + count > limit:
                yield leading + "".join(parts)
                parts, words, leading = [], 0, ""
            parts.append(part)
            words += count
        if parts:
            yield leading + "".join(parts)


def split_documents(
    dataset: datasets.Dataset | datasets.IterableDataset, column: str, manner: SplitDocuments
) -> datasets.Dataset | datasets.IterableDataset:
    """The data set with each text cut into documents, in a column of the same name."""
    return dataset.map(
        lambda batch: {column: [part for text in batch[column] if isinstance(text, str) for part in manner(text)]},
        batched=True,
        batch_size=8,
        remove_columns=[name for name in dataset.column_names if name != column],
    )


def split_single(dataset: datasets.Dataset, column: str, name: str) -> datasets.Dataset:
    """The data set as it is or, if it is one text of many paragraphs, that text cut into documents."""
    if len(dataset) != 1 or not isinstance(text := dataset[0][column], str):
        return dataset
    words = len(text.split())
    manner = SplitDocuments("paragraphs", max(min(MAX_WORDS, words // DOCUMENTS), 1))
    documents = list(manner(text))
    if len(documents) < 2:  # no blank line
        manner = SplitDocuments("words", manner.max_words)
        documents = list(manner(text))
    if len(documents) < 2:
        return dataset
    logger.warning(
        "corpus %s is one text: cut into %d documents by %s, of about %d words (split_documents says otherwise)",
        name,
        len(documents),
        manner.by,
        manner.max_words,
    )
    return datasets.Dataset.from_dict({column: documents})
