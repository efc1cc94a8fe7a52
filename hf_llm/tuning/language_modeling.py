"""Masked and causal language modelling on the texts of a data set, as tasks of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DataCollatorForLanguageModeling

from .examples import Encoder
from .task import IGNORED, Task


class _LanguageModeling(Task):
    """`text`, one row each; its records hold sums over the tokens that are to be predicted."""

    columns: ClassVar[tuple[str, ...]] = ("text",)

    def encode_batch(self, batch: dict[str, list], numbers: list[int], encoder: Encoder) -> dict[str, list]:
        encoded = encoder(batch["text"])
        return {**encoded, "cut": encoder.was_cut(encoded, batch["text"])}

    def shrink(self, logits, labels) -> torch.Tensor:
        """(batch, seq, 2): the loss of each token, and whether it was the likeliest; NaN where there is no label."""
        flat = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        right = (logits.argmax(-1) == labels).float()
        kept = torch.stack([flat.view_as(labels), right], -1)
        return kept.masked_fill((labels == IGNORED)[..., None], torch.nan)

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        records = []
        for text, row in zip(examples["text"], logits, strict=True):
            row = row[~numpy.isnan(row[:, 0]) & (row[:, 0] != IGNORED)]
            sums = {"tokens": len(row), "loss": float(row[:, 0].sum()), "right": float(row[:, 1].sum())}
            records.append({"text": text, **sums})
        return records

    def score(self, records: list[dict]) -> dict[str, float]:
        tokens, loss, right = (sum(r[name] for r in records) for name in ("tokens", "loss", "right"))
        return {"token_loss": loss / tokens, "perplexity": float(numpy.exp(loss / tokens)), "accuracy": right / tokens}


@dataclass
class MaskedLanguageModeling(_LanguageModeling):
    """Tokens that are hidden are predicted from all others.

    Attributes:
        mask_probability: share of the tokens that are to be predicted.
    """

    mask_probability: float = 0.15

    hub_name: ClassVar[str] = "fill-mask"
    auto_class: ClassVar[type] = AutoModelForMaskedLM

    def collate(self, encoder: Encoder) -> Callable:
        return DataCollatorForLanguageModeling(encoder.tokenizer, mlm_probability=self.mask_probability)


@dataclass
class CausalLanguageModeling(_LanguageModeling):
    """Each token is predicted from those before it."""

    hub_name: ClassVar[str] = "text-generation"
    auto_class: ClassVar[type] = AutoModelForCausalLM

    def collate(self, encoder: Encoder) -> Callable:
        return DataCollatorForLanguageModeling(encoder.tokenizer, mlm=False)

    def shrink(self, logits, labels) -> torch.Tensor:
        return super().shrink(logits[:, :-1], labels[:, 1:])
