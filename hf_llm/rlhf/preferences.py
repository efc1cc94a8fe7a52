"""Preferences, judged completions and prompts in the columns that TRL's trainers take.

https://huggingface.co/docs/trl/dataset_formats: texts are strings or conversations (lists of role and content).
"""

import math
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from hf_llm.data.tasks import load_task
from hf_llm.tuning.conversations import is_conversation, read_texts
from hf_llm.tuning.labels import check_texts
from hf_llm.tuning.pairs import take

from .trl_internals import tokenize_like_reward_trainer


RENAMING = "rename by data.dataset.columns"


@dataclass
class Ratings:
    """Texts that people rated, to be made into pairs of which the better rated is preferred.

    Attributes:
        text: column of the texts or conversations.
        rating: column of the ratings, numbers that grow with what is wanted.
        within: column whose value both texts of a pair share (the source, the question, ...).
        minimum_gap: how far apart the ratings of a pair are at least.
        pairs_per_text: in how many pairs a text is at most.
        margin: by how much scores must differ for each point of the ratings' difference before the loss is content
            (a margin in the loss, arXiv 2307.09288, section 3.2.2); 0 for none.
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
        if self.pairs_per_text < 1:
            raise ValueError(f"data.ratings.pairs_per_text = {self.pairs_per_text}, but it must be at least 1")
        if self.margin < 0:
            raise ValueError(f"data.ratings.margin = {self.margin}, but it must be at least 0")


@dataclass
class PreferenceData:
    """
    Attributes:
        dataset: anything that `hf_llm.data.tasks.load_task` takes: a name, a local file or glob, a Hub id, or a
            mapping with `columns` that renames.
        prompt_template: makes the column `prompt` out of others: "Question: {question}\\nAnswer:".
        prompt_words: makes the column `prompt` of the first so many words of a column `text`.
        ratings: how pairs are made where the data has ratings of single texts.
        chat_template: None takes the tokenizer's; "chatml", or a file with a Jinja template.
        max_train_samples, max_validation_samples, max_test_samples: take that many examples of a split, drawn once.
    """

    dataset: Any
    prompt_template: str | None = None
    prompt_words: int | None = None
    ratings: Ratings | None = None
    chat_template: str | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None

    def __post_init__(self):
        if self.prompt_template is not None and self.prompt_words is not None:
            raise ValueError("data.prompt_template and data.prompt_words both make prompts: set one of them")
        if self.prompt_words is not None and self.prompt_words < 1:
            raise ValueError(f"data.prompt_words = {self.prompt_words}, but it must be at least 1")


@dataclass(frozen=True)
class Kind:
    """A kind of data: what makes it of a data set, the columns of texts that it has, and whether more are kept."""

    make: Callable[[Dataset, PreferenceData], Dataset]
    texts: tuple[str, ...]
    extra: tuple[str, ...] | None = field(default=())  # None keeps all


def load_split(section: PreferenceData, kind: str, split: str) -> Dataset:
    """One split, in the columns of `KINDS[kind]`.

    Raises:
        ValueError: no such data, columns missing (those that exist are named), texts that are neither strings nor
            conversations, or nothing left.
    """
    form = KINDS[kind]
    dataset = load_task(section.dataset, split)
    if section.prompt_words is not None:
        need_columns(dataset, ("text",))
        check_texts(dataset, "text", split)
    dataset = form.make(dataset, section)
    texts = [name for name in form.texts if name in dataset.column_names]
    if not len(dataset):
        raise ValueError(f"data: nothing is left of the {split} split")
    dataset = read_texts(dataset, texts, split)
    if form.extra is not None:
        dataset = dataset.select_columns([*texts, *(name for name in form.extra if name in dataset.column_names)])
    return take(dataset, getattr(section, f"max_{split}_samples"), split)


def need_columns(dataset: Dataset, columns: tuple[str, ...]) -> None:
    """Raise ValueError, with the columns that exist, unless a data set has all of `columns`."""
    if missing := [name for name in columns if name not in dataset.column_names]:
        raise ValueError(
            f"data.dataset has no column {' and no '.join(map(repr, missing))}: its columns are "
            f"{dataset.column_names} ({RENAMING})"
        )


# ---- kinds ----------------------------------------------------------------------------------------------------------


def _with_prompts(dataset: Dataset, section: PreferenceData) -> Dataset:
    """The data set, with the column `prompt` that the section asks for."""
    if section.prompt_words is not None:
        return dataset.map(lambda row: {"prompt": " ".join(row["text"].split()[: section.prompt_words])})
    if section.prompt_template is not None:
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
    return dataset


def _with_label_names(dataset: Dataset) -> Dataset:
    """The data set with names of classes where it had their numbers."""
    for column, feature in dataset.features.items():
        if isinstance(feature, ClassLabel):
            names = feature.int2str(dataset[column][:])
            dataset = dataset.remove_columns(column).add_column(column, names)
    return dataset


def _preferences(dataset: Dataset, section: PreferenceData) -> Dataset:
    if section.ratings is not None:
        return pairs_of_ratings(dataset, section.ratings)
    need_columns(dataset, ("chosen", "rejected"))
    return _with_prompts(dataset, section).filter(lambda row: row["chosen"] != row["rejected"])


def _shared_prompt_preferences(dataset: Dataset, section: PreferenceData) -> Dataset:
    if section.ratings is not None:
        raise ValueError("data.ratings makes pairs of different texts, whose prompts differ: it is for reward models")
    return _preferences(dataset, section)


def _judged(dataset: Dataset, section: PreferenceData) -> Dataset:
    if "label" not in dataset.column_names and "chosen" in dataset.column_names:
        from trl import extract_prompt, unpair_preference_dataset

        dataset = _shared_prompt_preferences(dataset, section)
        if "prompt" not in dataset.column_names:
            dataset = dataset.map(extract_prompt)
        dataset = unpair_preference_dataset(dataset)
    else:
        dataset = _with_prompts(dataset, section)
    need_columns(dataset, ("prompt", "completion", "label"))
    labels = set(dataset.unique("label"))
    if labels != {True, False}:
        raise ValueError(
            f"data.dataset: the labels of KTO say whether a completion is wanted, true or false, and both must occur; "
            f"here they are {sorted(labels, key=str)[:8]}"
        )
    wanted = [bool(label) for label in dataset["label"]]
    return dataset.remove_columns("label").add_column("label", wanted)


def _prompts(dataset: Dataset, section: PreferenceData) -> Dataset:
    dataset = _with_prompts(_with_label_names(dataset), section)
    need_columns(dataset, ("prompt",))
    return dataset


KINDS = {
    "pairs of texts": Kind(_preferences, ("prompt", "chosen", "rejected"), ("margin", "gap")),
    "pairs of completions": Kind(_shared_prompt_preferences, ("prompt", "chosen", "rejected")),
    "judged completions": Kind(_judged, ("prompt", "completion"), ("label",)),
    "prompts": Kind(_prompts, ("prompt",), None),
}


def pairs_of_ratings(dataset: Dataset, ratings: Ratings, seed: int = 0) -> Dataset:
    """
    Pairs of texts of one data set, the better rated chosen. They are drawn at random, each text being in at most
    `ratings.pairs_per_text` of them, and those whose ratings are too near are left out.

    Returns:
        Columns `chosen`, `rejected`, `gap` (difference of the ratings) and, if asked for, `margin`.

    Raises:
        ValueError: columns are missing, or no two ratings are far enough apart.
    """
    columns = (ratings.text, ratings.rating, *((ratings.within,) if ratings.within else ()))
    need_columns(dataset, columns)
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


# ---- tokens ---------------------------------------------------------------------------------------------------------


def scored_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | list | None, answer: str | list) -> list[int]:
    """Token ids of what a reward model reads: prompt and answer as one, plain text with an end token behind it where
    the tokenizer has one, as TRL's RewardTrainer and `hf_llm.rlhf.rewards.RewardModel` have it."""
    text = answer if prompt is None else prompt + answer
    if isinstance(text, str) and tokenizer.eos_token is not None and not text.endswith(tokenizer.eos_token):
        text += tokenizer.eos_token
    return tokenize_like_reward_trainer(tokenizer, text)["input_ids"]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: list) -> list[list[int]]:
    """Token ids of prompts, conversations with the opening of the assistant's turn behind them."""
    if is_conversation(prompts[0]):
        return tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    return tokenizer(prompts)["input_ids"]
