"""Sequence classification and regression: `text` (and `text_pair`) to a class or a number."""

import math
from dataclasses import dataclass
from typing import ClassVar

from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from hf_llm.evaluation import load_metric

from . import baselines, figures
from .encoding import Encoder
from .labels import config_fields, find_classes
from .task import Task, softmax


@dataclass
class SequenceClassification(Task):
    """`label`: a class, as number, name or declared class."""

    hub_name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[type] = AutoModelForSequenceClassification
    columns: ClassVar[tuple[str, ...]] = ("text", "label")

    def prepare(self, data: dict[str, Dataset]) -> dict:
        self.classes = find_classes(data, "label")
        self.names = self.classes.names
        return {**config_fields(self.names), "problem_type": "single_label_classification"}

    def targets(self, labels: list) -> list:
        return self.classes.numbers(labels)

    def encode(self, examples: Dataset, encoder: Encoder) -> Dataset:
        columns = _columns(examples)

        def encode_batch(batch: dict) -> dict:
            texts = [batch[name] for name in columns]
            encoded = encoder(*texts)
            return {**encoded, "labels": self.targets(batch["label"]), "cut": encoder.was_cut(encoded, *texts)}

        return examples.map(encode_batch, batched=True, remove_columns=examples.column_names, desc="Tokenizing")

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        return [
            {
                "text": text,
                "label": self.names[label],
                "prediction": self.names[scores.argmax()],
                "probabilities": dict(zip(self.names, scores.round(5).tolist())),
            }
            for text, label, scores in zip(_texts(examples), features["labels"], softmax(logits))
        ]

    def score(self, records: list[dict]) -> dict[str, float]:
        places = {name: place for place, name in enumerate(self.names)}
        pairs = {
            "predictions": [places[r["prediction"]] for r in records],
            "references": [places[r["label"]] for r in records],
        }
        return {
            "accuracy": load_metric("accuracy").compute(**pairs)["accuracy"],
            "f1_macro": load_metric("f1").compute(**pairs, average="macro")["f1"],
            "matthews_correlation": load_metric("matthews_correlation").compute(**pairs)["matthews_correlation"],
        }

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list[dict]]:
        names = [self.names[place] for place in self.targets(train["label"])]
        guesses = {
            "most frequent class": baselines.most_frequent(names, len(records)),
            "naive Bayes on words": baselines.naive_bayes(_texts(train), names, _texts(examples)),
        }
        return {
            name: [{**record, "prediction": guess} for record, guess in zip(records, made)]
            for name, made in guesses.items()
        }

    def figures(self, records: list[dict]) -> dict:
        right = [r["label"] == r["prediction"] for r in records]
        confidence = [max(r["probabilities"].values()) for r in records]
        labels, predictions = [r["label"] for r in records], [r["prediction"] for r in records]
        return {
            "confusion.png": lambda figure: figures.confusion(figure, labels, predictions, self.names),
            "calibration.png": lambda figure: figures.calibration(figure, confidence, right),
        }


@dataclass
class Regression(SequenceClassification):
    """`label`: a number."""

    def prepare(self, data: dict[str, Dataset]) -> dict:
        for split, examples in data.items():
            if wrong := [v for v in examples["label"] if not _is_number(v)]:
                raise ValueError(f"data: 'label' of {split} has {wrong[0]!r}, which is no number")
        return {**config_fields(["value"]), "problem_type": "regression"}

    def targets(self, labels: list) -> list:
        return [float(label) for label in labels]

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        return [
            {"text": text, "label": label, "prediction": number}
            for text, label, number in zip(_texts(examples), features["labels"], logits[:, 0].tolist())
        ]

    def score(self, records: list[dict]) -> dict[str, float]:
        pairs = {name + "s": [r[key] for r in records] for name, key in _PAIR.items()}
        return {
            key: value
            for name in ("pearsonr", "spearmanr", "mse")
            for key, value in load_metric(name).compute(**pairs).items()
        }

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list[dict]]:
        guesses = baselines.ridge(_texts(train), self.targets(train["label"]), _texts(examples))
        return {"ridge regression on words": [{**r, "prediction": g} for r, g in zip(records, guesses)]}

    def figures(self, records: list[dict]) -> dict:
        labels, predictions = [r["label"] for r in records], [r["prediction"] for r in records]
        return {"predictions.png": lambda figure: figures.scatter(figure, labels, predictions)}


def _columns(examples: Dataset) -> list[str]:
    """Columns of the texts that are read together."""
    return [name for name in ("text", "text_pair") if name in examples.column_names]


def _texts(examples: Dataset) -> list[str]:
    """What is read, for those who take one text; pairs on two lines."""
    return ["\n".join(pair) for pair in zip(*(examples[name] for name in _columns(examples)))]


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_PAIR = {"prediction": "prediction", "reference": "label"}  # what metrics call it -> what records do
