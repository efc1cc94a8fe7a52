"""Source and target texts as token ids, for encoder-decoders and for decoders that go on from a prompt."""

import logging
from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

IGNORED = -100


@dataclass(frozen=True)
class PairFormat:
    """How a pair becomes token ids.

    Attributes:
        stack: "encoder-decoder" (labels are the target) or "decoder" (the target goes on from the source).
        prefix: before every source.
        separator: between source and target, for a decoder.
        max_source_length: tokens of a source, prefix and separator included; what is longer is cut.
        max_target_length: tokens of a target, end token included; what is longer is cut.
    """

    stack: str
    prefix: str
    separator: str
    max_source_length: int
    max_target_length: int


def take(dataset: Dataset, count: int | None, split: str) -> Dataset:
    """`count` examples of a split, drawn once; all if None.

    Raises:
        ValueError: none are wanted.
    """
    if count is None:
        return dataset
    if count < 1:
        raise ValueError(f"data.max_{split}_samples = {count} leaves nothing: it must be at least 1")
    return dataset.shuffle(seed=0).select(range(min(count, len(dataset))))


def encode_pairs(
    pairs: Dataset, tokenizer: PreTrainedTokenizerBase, form: PairFormat, with_prompts: bool = False
) -> tuple[Dataset, dict[str, int]]:
    """
    Token ids of pairs, and how many texts had to be cut.

    Args:
        pairs: columns `source` and `target`.
        with_prompts: also give a decoder's prompts, to generate from.

    Returns:
        A data set of `input_ids`, `attention_mask` and `labels` (-100 over a decoder's prompt), and for prompts
        `prompt_ids`; the numbers of cut sources and targets, as {"source": ..., "target": ...}.
    """
    encode = _encode_decoder if form.stack == "decoder" else _encode_encoder_decoder
    encoded = pairs.map(
        encode,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "form": form},
        remove_columns=pairs.column_names,
        desc="Tokenizing",
    )
    cut = {side: sum(encoded[f"{side}_is_cut"]) for side in ("source", "target")}
    unwanted = ["source_is_cut", "target_is_cut"]
    if form.stack == "decoder" and not with_prompts:
        unwanted.append("prompt_ids")
    return encoded.remove_columns(unwanted), cut


def report_cuts(split: str, cut: dict[str, int], rows: int, form: PairFormat) -> list[str]:
    """Warn of texts that were cut; returns the same as sentences for the card."""
    limits = {"source": form.max_source_length, "target": form.max_target_length}
    notes = [
        f"{cut[side]:,} of {rows:,} {side} texts of the {split} split are longer than data.max_{side}_length = "
        f"{limit} tokens and were cut."
        for side, limit in limits.items()
        if cut[side]
    ]
    for note in notes:
        logger.warning(note)
    return notes


def _encode_encoder_decoder(rows: dict, tokenizer, form: PairFormat) -> dict:
    sources = tokenizer([form.prefix + text for text in rows["source"]])["input_ids"]
    targets = tokenizer(text_target=rows["target"])["input_ids"]
    cut_sources = [_cut(ids, form.max_source_length) for ids in sources]
    cut_targets = [_cut(ids, form.max_target_length) for ids in targets]
    return {
        "input_ids": cut_sources,
        "attention_mask": [[1] * len(ids) for ids in cut_sources],
        "labels": cut_targets,
        "source_is_cut": [len(ids) > form.max_source_length for ids in sources],
        "target_is_cut": [len(ids) > form.max_target_length for ids in targets],
    }


def _cut(ids: list[int], length: int) -> list[int]:
    """At most `length` ids; the last, an end token where there is one, stays."""
    return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]


def _encode_decoder(rows: dict, tokenizer, form: PairFormat) -> dict:
    end = [tokenizer.eos_token_id]
    plain = {"add_special_tokens": False}
    start = [token for token in tokenizer("")["input_ids"] if token not in end]  # the prompt stays open
    separator = tokenizer(form.separator, **plain)["input_ids"] if form.separator else []
    sources = tokenizer([form.prefix + text for text in rows["source"]], **plain)["input_ids"]
    targets = [ids + end for ids in tokenizer(rows["target"], **plain)["input_ids"]]
    room = form.max_source_length - len(start) - len(separator)
    prompts = [start + ids[:room] + separator for ids in sources]
    completions = [_cut(ids, form.max_target_length) for ids in targets]
    inputs = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return {
        "input_ids": inputs,
        "attention_mask": [[1] * len(ids) for ids in inputs],
        "labels": [[IGNORED] * len(p) + c for p, c in zip(prompts, completions, strict=True)],
        "prompt_ids": prompts,
        "source_is_cut": [len(ids) > room for ids in sources],
        "target_is_cut": [len(ids) > form.max_target_length for ids in targets],
    }


@dataclass
class PairCollator(DataCollatorForSeq2Seq):
    """Pads on the right; a decoder's `prompt_ids` on the left, as `prompts` (input_ids and attention_mask)."""

    def __call__(self, features: list[dict], return_tensors=None):
        prompts = [feature["prompt_ids"] for feature in features if "prompt_ids" in feature]
        features = [{k: v for k, v in feature.items() if k != "prompt_ids"} for feature in features]
        batch = super().__call__(features, return_tensors)
        if prompts:
            batch["prompts"] = self._pad_left(prompts)
        return batch

    def _pad_left(self, prompts: list[list[int]]) -> dict[str, torch.Tensor]:
        """(batch, longest prompt) int64, both."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        }
