"""Multiple choice: which of `choices` answers `question`."""

from dataclasses import dataclass
from typing import ClassVar

import numpy
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

from hf_llm.evaluation import load_metric

from . import figures
from .encoding import Encoder
from .task import Task, softmax


@dataclass
class MultipleChoice(Task):
    """`label`: the number of the right choice. All questions have equally many choices."""

    hub_name: ClassVar[str] = "multiple-choice"
    auto_class: ClassVar[type] = AutoModelForMultipleChoice
    columns: ClassVar[tuple[str, ...]] = ("question", "choices", "label")

    def prepare(self, data: dict[str, Dataset]) -> dict:
        self.count = len(next(iter(data.values()))[0]["choices"])
        for split, examples in data.items():
            for i, (choices, label) in enumerate(zip(examples["choices"], examples["label"])):
                if len(choices) != self.count:
                    raise ValueError(
                        f"data: example {i} of {split} has {len(choices)} choices, the first of all {self.count}: "
                        "all must have equally many"
                    )
                if label not in range(self.count):
                    raise ValueError(f"data: example {i} of {split}: label {label!r} is none of 0 to {self.count - 1}")
        return {}

    def encode(self, examples: Dataset, encoder: Encoder) -> Dataset:
        def encode_batch(batch: dict) -> dict:
            questions = [question for question in batch["question"] for _ in range(self.count)]
            texts = (questions, [choice for choices in batch["choices"] for choice in choices])
            encoded = encoder(*texts)
            rows = {name: self._by_question(values) for name, values in encoded.items()}
            cut = [any(some) for some in self._by_question(encoder.was_cut(encoded, *texts))]
            return {**rows, "labels": batch["label"], "cut": cut}

        return examples.map(encode_batch, batched=True, remove_columns=examples.column_names, desc="Tokenizing")

    def _by_question(self, values: list) -> list[list]:
        return [values[i : i + self.count] for i in range(0, len(values), self.count)]

    def collator(self, encoder: Encoder):
        return DataCollatorForMultipleChoice(encoder.tokenizer)

    def decode(self, logits: numpy.ndarray, features: Dataset, examples: Dataset) -> list[dict]:
        return [
            {
                "question": example["question"],
                "choices": example["choices"],
                "label": example["label"],
                "prediction": int(scores.argmax()),
                "probabilities": scores.round(5).tolist(),
            }
            for example, scores in zip(examples, softmax(logits))
        ]

    def score(self, records: list[dict]) -> dict[str, float]:
        predictions, labels = [r["prediction"] for r in records], [r["label"] for r in records]
        return load_metric("accuracy").compute(predictions=predictions, references=labels)

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list[dict]]:
        longest = [int(numpy.argmax([len(choice) for choice in record["choices"]])) for record in records]
        return {"longest choice": [{**r, "prediction": place} for r, place in zip(records, longest)]}

    def figures(self, records: list[dict]) -> dict:
        confidence = [max(r["probabilities"]) for r in records]
        right = [r["label"] == r["prediction"] for r in records]
        return {"calibration.png": lambda figure: figures.calibration(figure, confidence, right)}
