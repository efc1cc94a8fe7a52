"""Token classification: `words` with a tag each (`tags`); a word has the tag of its first token.

Of spans, `f1_unseen` is the F1 of those whose words are no span of the training examples: what a list of names that
was learned by heart cannot find.
"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from hf_llm.evaluation import load_metric
from hf_llm.evaluation.answers import are_spans

from . import baselines, figures
from .encoding import Encoder
from .labels import config_fields, find_classes
from .task import Task


IGNORED = -100


@dataclass
class TokenClassification(Task):
    """
    Attributes:
        label_all_tokens: in training every token of a word has its tag, not its first one alone.
    """

    label_all_tokens: bool = False

    hub_name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[type] = AutoModelForTokenClassification
    columns: ClassVar[tuple[str, ...]] = ("words", "tags")
    needs_offsets: ClassVar[bool] = True
    tokenizer_options: ClassVar[dict] = {"add_prefix_space": True}  # of byte-level BPE, which knows no words otherwise

    def prepare(self, data: dict[str, Dataset]) -> dict:
        for split, examples in data.items():
            for i, (words, tags) in enumerate(zip(examples["words"], examples["tags"])):
                if not isinstance(tags, list) or len(words) != len(tags):
                    count = f"{len(tags)} tags" if isinstance(tags, list) else f"{tags!r} as 'tags'"
                    raise ValueError(f"data: example {i} of {split} has {len(words)} words, but {count}")
        self.classes = find_classes(data, "tags")
        self.names = self.classes.names
        self.seen = set()
        if self.has_spans:
            for words, tags in zip(data["train"]["words"], data["train"]["tags"]):
                names = [self.names[number] for number in self.classes.numbers(tags)]
                self.seen.update(tuple(words[first : last + 1]) for _, first, last in get_entities(names))
        return config_fields(self.names)

    @property
    def has_spans(self) -> bool:
        """Whether the tags are those of spans."""
        return are_spans(self.names)

    def encode(self, examples: Dataset, encoder: Encoder) -> Dataset:
        def encode_batch(batch: dict) -> dict:
            encoded = encoder(batch["words"], is_split_into_words=True)
            firsts, kept, labels = [], [], []
            for i, tags in enumerate(batch["tags"]):
                words = encoded.word_ids(i)
                first = [word is not None and word not in words[:place] for place, word in enumerate(words)]
                numbers = self.classes.numbers(tags)
                counts = [word is not None and (f or self.label_all_tokens) for word, f in zip(words, first)]
                labels.append([numbers[word] if count else IGNORED for word, count in zip(words, counts)])
                firsts.append([place for place, f in enumerate(first) if f])
                kept.append([words[place] for place in firsts[-1]])
            cut = encoder.was_cut(encoded)
            return {**encoded, "labels": labels, "first_tokens": firsts, "kept_words": kept, "cut": cut}

        return examples.map(encode_batch, batched=True, remove_columns=examples.column_names, desc="Tokenizing")

    def collator(self, encoder: Encoder):
        return DataCollatorForTokenClassification(encoder.tokenizer)

    def shrink(self, logits, labels):
        return super().shrink(logits, labels).argmax(-1)

    def decode(self, logits: numpy.ndarray, features: Dataset, examples: Dataset) -> list[dict]:
        """Words that were cut off, and those of which the tokenizer leaves nothing, are left out."""
        records = []
        for best, feature, example in zip(logits, features, examples):
            places, kept = feature["first_tokens"], feature["kept_words"]
            right = self.classes.numbers([example["tags"][word] for word in kept])
            records.append(
                {
                    "words": [example["words"][word] for word in kept],
                    "tags": [self.names[number] for number in right],
                    "prediction": [self.names[best[place]] for place in places],
                }
            )
        return records

    def score(self, records: list[dict]) -> dict[str, float]:
        if self.has_spans:
            scores = self._spans(records)
            found = {name.removeprefix("overall_"): v for name, v in scores.items() if name.startswith("overall_")}
            unseen = [self._without_seen(record) for record in records]
            if any(tag != "O" for record in unseen for tag in record["tags"]):
                found["f1_unseen"] = self._spans(unseen)["overall_f1"]
            return found
        place = {name: i for i, name in enumerate(self.names)}
        pairs = {
            "predictions": [place[tag] for r in records for tag in r["prediction"]],
            "references": [place[tag] for r in records for tag in r["tags"]],
        }
        return {
            "accuracy": load_metric("accuracy").compute(**pairs)["accuracy"],
            "f1_macro": load_metric("f1").compute(**pairs, average="macro")["f1"],
        }

    def _without_seen(self, record: dict) -> dict:
        """A record without the spans, predicted and right ones, whose words are a span of the training examples."""
        result = {**record}
        for key in ("tags", "prediction"):
            result[key] = list(record[key])
            for _, first, last in get_entities(record[key]):
                if tuple(record["words"][first : last + 1]) in self.seen:
                    result[key][first : last + 1] = ["O"] * (last + 1 - first)
        return result

    def _spans(self, records: list[dict]) -> dict:
        tags = {"predictions": [r["prediction"] for r in records], "references": [r["tags"] for r in records]}
        return load_metric("seqeval").compute(**tags)

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list[dict]]:
        tags = [[self.names[n] for n in self.classes.numbers(t)] for t in train["tags"]]
        guesses = baselines.tags_of_words(train["words"], tags, [r["words"] for r in records])
        return {"most frequent tag of each word": [{**r, "prediction": g} for r, g in zip(records, guesses)]}

    def figures(self, records: list[dict]) -> dict:
        if not self.has_spans:
            labels = [tag for r in records for tag in r["tags"]]
            predictions = [tag for r in records for tag in r["prediction"]]
            return {"confusion.png": lambda figure: figures.confusion(figure, labels, predictions, self.names)}
        kinds = {kind: scores for kind, scores in self._spans(records).items() if isinstance(scores, dict)}
        f1 = {kind: scores["f1"] for kind, scores in kinds.items()}
        counts = Counter({kind: scores["number"] for kind, scores in kinds.items()})
        return {"spans.png": lambda figure: figures.bars(figure, f1, "F1 of spans", counts)}
