"""Source and target texts as token ids, for encoder-decoders and for decoders that go on from a prompt."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from .job import DataSection
from .task import IGNORED


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PairsData(DataSection):
    """
    Attributes:
        source, target: columns of the texts.
        prefix: before every source ("translate English to Spanish: ").
        separator: between source and target, where a decoder goes on from the source.
        max_source_length: tokens of a source, prefix and separator included; what is longer is cut, and reported.
        max_target_length: tokens of a target, end token included; what is longer is cut, and reported.
        max_validation_samples: of evaluations while training; the test split gives the final figures.
    """

    dataset: Any = "verses-en-es"
    source: str
    target: str
    sides: ClassVar[tuple[str, ...]] = ("source", "target")
    prefix: str = ""
    separator: str = "\n"
    max_source_length: int = 128
    max_target_length: int = 128
    max_validation_samples: int | None = 256

    def __post_init__(self):
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 2:
                raise ValueError(f"data.{name} = {getattr(self, name)}: must be at least 2, a token and an end")


def encode_pairs(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, data: PairsData, decoder: bool, with_prompts: bool = False
) -> Dataset:
    """
    Token ids of pairs.

    Args:
        pairs: columns `source` and `target`.
        decoder: whether the target goes on from the source, in one text.
        with_prompts: also give a decoder's prompts, to generate from.

    Returns:
        A data set of `input_ids`, `attention_mask` and `labels` (-100 over a decoder's prompt), for prompts
        `prompt_ids`, and of what was cut `source_is_cut` and `target_is_cut`.
    """
    encoded = pairs.map(
        _encode_decoder if decoder else _encode_encoder_decoder,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "data": data},
        remove_columns=pairs.column_names,
        desc="Tokenizing",
    )
    return encoded if with_prompts or not decoder else encoded.remove_columns("prompt_ids")


def report_cuts(split: str, encoded: Dataset, data: PairsData) -> list[str]:
    """Warn of texts that were cut; returns the same as sentences for the card."""
    notes = []
    for side, limit in {"source": data.max_source_length, "target": data.max_target_length}.items():
        if count := sum(encoded[f"{side}_is_cut"]):
            notes.append(
                f"{count:,} of {len(encoded):,} {side} texts of the {split} split are longer than "
                f"data.max_{side}_length = {limit} tokens and were cut."
            )
            logger.warning(notes[-1])
    return notes


def _encode_encoder_decoder(rows: dict, tokenizer: PreTrainedTokenizerBase, data: PairsData) -> dict:
    sources = tokenizer([data.prefix + text for text in rows["source"]])["input_ids"]
    targets = tokenizer(text_target=rows["target"])["input_ids"]
    inputs = [_cut(ids, data.max_source_length) for ids in sources]
    return {
        "input_ids": inputs,
        "attention_mask": [[1] * len(ids) for ids in inputs],
        "labels": [_cut(ids, data.max_target_length) for ids in targets],
        "source_is_cut": [len(ids) > data.max_source_length for ids in sources],
        "target_is_cut": [len(ids) > data.max_target_length for ids in targets],
    }


def _encode_decoder(rows: dict, tokenizer: PreTrainedTokenizerBase, data: PairsData) -> dict:
    end, plain = [tokenizer.eos_token_id], {"add_special_tokens": False}
    start = [token for token in tokenizer("")["input_ids"] if token not in end]  # the prompt stays open
    separator = tokenizer(data.separator, **plain)["input_ids"] if data.separator else []
    sources = tokenizer([data.prefix + text for text in rows["source"]], **plain)["input_ids"]
    targets = [ids + end for ids in tokenizer(rows["target"], **plain)["input_ids"]]
    room = data.max_source_length - len(start) - len(separator)
    prompts = [start + ids[:room] + separator for ids in sources]
    completions = [_cut(ids, data.max_target_length) for ids in targets]
    return {
        "input_ids": [p + c for p, c in zip(prompts, completions, strict=True)],
        "attention_mask": [[1] * (len(p) + len(c)) for p, c in zip(prompts, completions, strict=True)],
        "labels": [[IGNORED] * len(p) + c for p, c in zip(prompts, completions, strict=True)],
        "prompt_ids": prompts,
        "source_is_cut": [len(ids) > room for ids in sources],
        "target_is_cut": [len(ids) > data.max_target_length for ids in targets],
    }


def _cut(ids: list[int], length: int) -> list[int]:
    """At most `length` ids; the last, an end token where there is one, stays."""
    return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]


class PairCollator(DataCollatorForSeq2Seq):
    """Pads on the right; a decoder's `prompt_ids` on the left, as `prompts` (input_ids and attention_mask)."""

    def __call__(self, features: list[dict], return_tensors=None):
        names = ("input_ids", "attention_mask", "labels")
        batch = super().__call__([{name: feature[name] for name in names} for feature in features], return_tensors)
        if "prompt_ids" in features[0]:
            prompts = {"input_ids": [feature["prompt_ids"] for feature in features]}
            batch["prompts"] = dict(self.tokenizer.pad(prompts, padding_side="left", return_tensors="pt"))
        return batch
