"""Preferences, judged completions and prompts in the columns that TRL's trainers take.

https://huggingface.co/docs/trl/dataset_formats: texts are strings or conversations (lists of role and content).
"""

import math
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from hf_llm.data.tasks import load_task
from hf_llm.tuning.conversations import is_conversation, read_texts
from hf_llm.tuning.examples import check_columns
from hf_llm.tuning.job import DataSection


_PAIR = ("chosen", "rejected")


@dataclass
class Ratings:
    """How rated texts are made into pairs of which the better rated is preferred.

    Attributes:
        text: column of the texts or conversations.
        rating: column of the ratings, numbers; higher is better.
        within: column whose value both texts of a pair share (the source, the question, ...).
        minimum_gap: smallest difference of the ratings of a pair.
        pairs_per_text: largest number of pairs that a text is in.
        margin: margin in the loss per point of the ratings' difference (arXiv 2307.09288, section 3.2.2); 0 for none.
    """

    text: str = "text"
    rating: str = "rating"
    within: str | None = None
    minimum_gap: float = 1.0
    pairs_per_text: int = 2
    margin: float = 0.0

    def __post_init__(self):
        if self.minimum_gap <= 0:
            raise ValueError(f"data.ratings.minimum_gap = {self.minimum_gap}, but it must be positive")
        for name, least in (("pairs_per_text", 1), ("margin", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.ratings.{name} = {getattr(self, name)}, but it must be at least {least}")


@dataclass(kw_only=True)
class PreferenceData(DataSection):
    """
    Attributes:
        prompt_template: makes the column `prompt` out of others: "Question: {question}\\nAnswer:".
        prompt_words: makes the column `prompt` of the first so many words of a column `text`.
        ratings: how pairs are made where the data has ratings of single texts.
        chat_template: None takes the tokenizer's; "chatml", or a file with a Jinja template.
    """

    prompt_template: str | None = None
    prompt_words: int | None = None
    ratings: Ratings | None = None
    chat_template: str | None = None

    def __post_init__(self):
        if self.prompt_template is not None and self.prompt_words is not None:
            raise ValueError("data.prompt_template and data.prompt_words both make prompts: set one of them")
        if self.prompt_words is not None and self.prompt_words < 1:
            raise ValueError(f"data.prompt_words = {self.prompt_words}, but it must be at least 1")


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        make: makes its columns of a split with prompts.
        needs: columns that there must be then.
        texts: columns of texts or conversations, those of them that there are.
        keeps: further columns; None keeps all, for reward functions.
    """

    make: Callable[[Dataset, str], Dataset]
    needs: tuple[str, ...]
    texts: tuple[str, ...]
    keeps: tuple[str, ...] | None = ()


def load_split(section: PreferenceData, kind: str, split: str) -> Dataset:
    """One split, in the columns of `KINDS[kind]`.

    Raises:
        ValueError: no such data, columns missing (those that exist are named), texts that are neither strings nor
            conversations, or nothing left.
    """
    form = KINDS[kind]
    dataset = load_task(section.dataset, split)
    if section.ratings is None:
        if form.keeps is None:
            dataset = _with_label_names(dataset)
        dataset = form.make(_with_prompts(dataset, section, split), split)
    elif kind == "pairs of texts":
        ratings = section.ratings
        check_columns({split: dataset}, [c for c in (ratings.text, ratings.rating, ratings.within) if c is not None])
        dataset = pairs_of_ratings(dataset, ratings)
    else:
        raise ValueError("data.ratings makes pairs of different texts, whose prompts differ: it is for reward models")
    check_columns({split: dataset}, form.needs)
    if not len(dataset):
        raise ValueError(f"data: nothing is left of the {split} split")
    texts = [name for name in form.texts if name in dataset.column_names]
    dataset = read_texts(dataset, texts, split)
    if form.keeps is not None:
        dataset = dataset.select_columns([*texts, *(name for name in form.keeps if name in dataset.column_names)])
    return section.take(dataset, split)


# ---- kinds ----------------------------------------------------------------------------------------------------------


def _with_label_names(dataset: Dataset) -> Dataset:
    """The data set with the names of classes in place of their numbers."""
    for column, feature in dataset.features.items():
        if isinstance(feature, ClassLabel):
            names = feature.int2str(dataset[column][:])
            dataset = dataset.remove_columns(column).add_column(column, names)
    return dataset


def _with_prompts(dataset: Dataset, section: PreferenceData, split: str) -> Dataset:
    """The data set with a column `prompt`, where the section says how to make one."""
    if section.prompt_words is not None:
        check_columns({split: dataset}, ("text",))
        return dataset.map(lambda row: {"prompt": " ".join(row["text"].split()[: section.prompt_words])})
    if section.prompt_template is None:
        return dataset
    for _, column, _, _ in string.Formatter().parse(section.prompt_template):
        if column in dataset.column_names and None in (values := dataset[column][:]):
            raise ValueError(f"data.prompt_template: row {values.index(None)} of column {column!r} is null")
    try:
        return dataset.map(lambda row: {"prompt": section.prompt_template.format(**row)})
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"data.prompt_template = {section.prompt_template!r} asks for {error}, and the columns are "
            f"{dataset.column_names}"
        ) from error


def _preferences(dataset: Dataset, split: str) -> Dataset:
    check_columns({split: dataset}, _PAIR)
    return dataset.filter(lambda row: row["chosen"] != row["rejected"])


def _judged(dataset: Dataset, split: str) -> Dataset:
    if "label" not in dataset.column_names and "chosen" in dataset.column_names:
        from trl import extract_prompt, unpair_preference_dataset

        dataset = _preferences(dataset, split)
        if "prompt" not in dataset.column_names:
            dataset = dataset.map(extract_prompt)
        dataset = unpair_preference_dataset(dataset)
    check_columns({split: dataset}, ("label",))
    labels = set(dataset.unique("label"))
    if labels != {True, False}:
        raise ValueError(
            f"data.dataset: the labels of KTO say whether a completion is wanted, true or false, and both must occur; "
            f"here they are {sorted(labels, key=str)[:8]}"
        )
    wanted = [bool(label) for label in dataset["label"]]
    return dataset.remove_columns("label").add_column("label", wanted)


KINDS = {
    "pairs of texts": Kind(_preferences, _PAIR, ("prompt", *_PAIR), ("margin", "gap")),
    "pairs of completions": Kind(_preferences, _PAIR, ("prompt", *_PAIR)),
    "judged completions": Kind(_judged, ("prompt", "completion"), ("prompt", "completion"), ("label",)),
    "prompts": Kind(lambda dataset, split: dataset, ("prompt",), ("prompt",), None),
}


def pairs_of_ratings(dataset: Dataset, ratings: Ratings, seed: int = 0) -> Dataset:
    """
    Random pairs of texts, without those whose ratings differ by less than `ratings.minimum_gap`.

    Returns:
        Columns `chosen`, `rejected`, `gap` (difference of the ratings) and, unless `ratings.margin` is 0, `margin`.

    Raises:
        ValueError: a rating is no number, or no two are far enough apart.
    """
    for row, rating in enumerate(dataset[ratings.rating]):
        if not isinstance(rating, (int, float)) or not math.isfinite(rating):
            raise ValueError(f"data.ratings.rating: row {row} of column {ratings.rating!r} is {rating!r}, no number")
    scores = numpy.asarray(dataset[ratings.rating], dtype=float)
    groups = dataset[ratings.within] if ratings.within else [""] * len(dataset)
    members: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    rng = numpy.random.default_rng(seed)
    pairs = {}
    for _ in range(ratings.pairs_per_text):
        for rows in members.values():
            order = rng.permutation(rows)
            for a, b in zip(order[0::2].tolist(), order[1::2].tolist(), strict=False):
                better, worse = (a, b) if scores[a] > scores[b] else (b, a)
                if scores[better] - scores[worse] >= ratings.minimum_gap:
                    pairs[better, worse] = None
    if not pairs:
        raise ValueError(f"data.ratings.minimum_gap = {ratings.minimum_gap}: no two ratings are that far apart")
    order = rng.permutation(list(pairs))
    texts, gaps = dataset[ratings.text][:], scores[order[:, 0]] - scores[order[:, 1]]
    made = {"chosen": [texts[i] for i in order[:, 0]], "rejected": [texts[i] for i in order[:, 1]], "gap": gaps}
    if ratings.margin:
        made["margin"] = ratings.margin * gaps
    return Dataset.from_dict(made)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: list) -> list[list[int]]:
    """Token ids of prompts; those of conversations end with the chat template's generation prompt."""
    if not is_conversation(prompts[0]):
        return tokenizer(prompts)["input_ids"]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return tokenizer.apply_chat_template(prompts, **options)["input_ids"]
