"""Tasks with one class or number for each text, one class for each word, or one right answer among several."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    PreTrainedConfig,
)

from hf_llm.metrics import METRICS, are_spans

from . import baselines, figures
from .examples import Encoder, find_classes
from .task import IGNORED, Draw, Task, softmax


def _class_fields(names: list[str]) -> dict:
    """Fields of a model's configuration that name its classes."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: place for place, name in enumerate(names)},
    }


def _agreement(labels: list[str], predictions: list[str]) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews correlation of classes by name."""
    place = {name: i for i, name in enumerate(sorted({*labels, *predictions}))}
    pairs = {"predictions": [place[p] for p in predictions], "references": [place[label] for label in labels]}
    return {
        **METRICS["accuracy"](**pairs),
        "f1_macro": METRICS["f1"](**pairs, average="macro")["f1"],
        **METRICS["matthews_correlation"](**pairs),
    }


def _calibration(confidence: list[float], records: list[dict]) -> dict[str, Draw]:
    right = [r["label"] == r["prediction"] for r in records]
    return {"calibration.png": lambda figure: figures.calibration(figure, confidence, right)}


# ---- one class or number for each text ------------------------------------------------------------------------------


@dataclass
class SequenceClassification(Task):
    """`text` (and `text_pair`) to `label`: a class, as number, name or declared class."""

    hub_name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[type] = AutoModelForSequenceClassification
    columns: ClassVar[tuple[str, ...]] = ("text", "label")

    def prepare(self, data: dict[str, Dataset], head: PreTrainedConfig | None = None) -> dict:
        self.classes = find_classes(data, "label", head)
        return {**_class_fields(self.classes.names), "problem_type": "single_label_classification"}

    def targets(self, labels: list) -> list:
        return self.classes.numbers(labels)

    def encode_batch(self, batch: dict[str, list], numbers: list[int], encoder: Encoder) -> dict[str, list]:
        texts = [batch[name] for name in ("text", "text_pair") if name in batch]
        encoded = encoder(*texts)
        return {**encoded, "labels": self.targets(batch["label"]), "cut": encoder.was_cut(encoded, *texts)}

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        names = self.classes.names
        return [
            {
                "text": text,
                "label": names[label],
                "prediction": names[scores.argmax()],
                "probabilities": dict(zip(names, scores.round(5).tolist())),
            }
            for text, label, scores in zip(_texts(examples), features["labels"], softmax(logits))
        ]

    def score(self, records: list[dict]) -> dict[str, float]:
        return _agreement([r["label"] for r in records], [r["prediction"] for r in records])

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list]:
        names = [self.classes.names[place] for place in self.targets(train["label"])]
        return {
            "most frequent class": baselines.most_frequent(names, len(records)),
            "naive Bayes on words": baselines.naive_bayes(_texts(train), names, _texts(examples)),
        }

    def figures(self, records: list[dict]) -> dict[str, Draw]:
        labels, predictions = [r["label"] for r in records], [r["prediction"] for r in records]
        return {
            "confusion.png": lambda figure: figures.confusion(figure, labels, predictions, self.classes.names),
            **_calibration([max(r["probabilities"].values()) for r in records], records),
        }


@dataclass
class Regression(SequenceClassification):
    """`text` (and `text_pair`) to `label`: a number."""

    def prepare(self, data: dict[str, Dataset], head: PreTrainedConfig | None = None) -> dict:
        for split, examples in data.items():
            for value in examples["label"]:
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                    raise ValueError(f"data: 'label' of {split} has {value!r}, which is no number")
        return {**_class_fields(["value"]), "problem_type": "regression"}

    def targets(self, labels: list) -> list:
        return [float(label) for label in labels]

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        rows = zip(_texts(examples), features["labels"], numpy.asarray(logits)[:, 0].tolist())
        return [{"text": text, "label": label, "prediction": number} for text, label, number in rows]

    def score(self, records: list[dict]) -> dict[str, float]:
        pairs = {"predictions": [r["prediction"] for r in records], "references": [r["label"] for r in records]}
        names = ("pearsonr", "spearmanr", "mse")
        return {key: value for name in names for key, value in METRICS[name](**pairs).items()}

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list]:
        guesses = baselines.ridge(_texts(train), self.targets(train["label"]), _texts(examples))
        return {"ridge regression on words": guesses}

    def figures(self, records: list[dict]) -> dict[str, Draw]:
        labels, predictions = [r["label"] for r in records], [r["prediction"] for r in records]
        return {"predictions.png": lambda figure: figures.scatter(figure, labels, predictions)}


def _texts(examples: Dataset) -> list[str]:
    """What is read, for those who take one text; pairs on two lines."""
    columns = [name for name in ("text", "text_pair") if name in examples.column_names]
    return ["\n".join(pair) for pair in zip(*(examples[name] for name in columns))]


# ---- one class for each word ----------------------------------------------------------------------------------------


@dataclass
class TokenClassification(Task):
    """`words` to `tags`, one each; a word has the tag of its first token.

    Of spans, `f1_unseen` is the F1 of those whose words are no span of the training examples: what a list of names
    that was learned by heart cannot find.

    Attributes:
        label_all_tokens: in training every token of a word has its tag, not its first one alone.
    """

    label_all_tokens: bool = False

    hub_name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[type] = AutoModelForTokenClassification
    columns: ClassVar[tuple[str, ...]] = ("words", "tags")
    collator: ClassVar[type] = DataCollatorForTokenClassification
    needs_offsets: ClassVar[bool] = True
    tokenizer_options: ClassVar[dict] = {"add_prefix_space": True}  # of byte-level BPE, which knows no words otherwise
    seen: ClassVar[set[tuple[str, ...]] | None] = None  # spans of the training examples

    def prepare(self, data: dict[str, Dataset], head: PreTrainedConfig | None = None) -> dict:
        for split, examples in data.items():
            for i, (words, tags) in enumerate(zip(examples["words"], examples["tags"])):
                if not isinstance(tags, list) or len(words) != len(tags):
                    count = f"{len(tags)} tags" if isinstance(tags, list) else f"{tags!r} as 'tags'"
                    raise ValueError(f"data: example {i} of {split} has {len(words)} words, but {count}")
        self.classes = find_classes(data, "tags", head)
        if head is None and are_spans(self.classes.names):
            self.seen = set()
            for words, tags in zip(data["train"]["words"], self.tags(data["train"]["tags"])):
                self.seen.update(tuple(words[first : last + 1]) for _, first, last in get_entities(tags))
        return _class_fields(self.classes.names)

    def tags(self, examples: list[list]) -> list[list[str]]:
        """Names of the tags of examples."""
        return [[self.classes.names[n] for n in self.classes.numbers(tags)] for tags in examples]

    def encode_batch(self, batch: dict[str, list], numbers: list[int], encoder: Encoder) -> dict[str, list]:
        encoded = encoder(batch["words"], is_split_into_words=True)
        firsts, kept, labels = [], [], []
        for i, tags in enumerate(batch["tags"]):
            words, first, places = encoded.word_ids(i), {}, self.classes.numbers(tags)
            for token, word in enumerate(words):
                if word is not None:
                    first.setdefault(word, token)
            counted = [w is not None and (self.label_all_tokens or first[w] == t) for t, w in enumerate(words)]
            labels.append([places[word] if count else IGNORED for word, count in zip(words, counted)])
            firsts.append(list(first.values()))
            kept.append(list(first))
        cut = encoder.was_cut(encoded)
        return {**encoded, "labels": labels, "first_tokens": firsts, "kept_words": kept, "cut": cut}

    def shrink(self, logits, labels):
        return super().shrink(logits, labels).argmax(-1)

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        """Words that were cut off, and those of which the tokenizer leaves nothing, are left out."""
        right = self.tags(examples["tags"])
        return [
            {
                "words": [words[word] for word in feature["kept_words"]],
                "tags": [tags[word] for word in feature["kept_words"]],
                "prediction": [self.classes.names[best[token]] for token in feature["first_tokens"]],
            }
            for best, feature, words, tags in zip(logits, features, examples["words"], right)
        ]

    def score(self, records: list[dict]) -> dict[str, float]:
        if not _has_spans(records):
            scores = _agreement(*([tag for r in records for tag in r[key]] for key in ("tags", "prediction")))
            return {name: scores[name] for name in ("accuracy", "f1_macro")}
        scores = _span_scores(records)
        found = {name.removeprefix("overall_"): v for name, v in scores.items() if name.startswith("overall_")}
        if self.seen is not None:
            unseen = [self._without_seen(record) for record in records]
            if any(tag != "O" for record in unseen for tag in record["tags"]):
                found["f1_unseen"] = _span_scores(unseen)["overall_f1"]
        return found

    def _without_seen(self, record: dict) -> dict:
        """A record without the spans, predicted and right ones, whose words are a span of the training examples."""
        result = {**record}
        for key in ("tags", "prediction"):
            result[key] = list(record[key])
            for _, first, last in get_entities(record[key]):
                if tuple(record["words"][first : last + 1]) in self.seen:
                    result[key][first : last + 1] = ["O"] * (last + 1 - first)
        return result

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list]:
        tags = self.tags(train["tags"])
        guesses = baselines.tags_of_words(train["words"], tags, [r["words"] for r in records])
        return {"most frequent tag of each word": guesses}

    def figures(self, records: list[dict]) -> dict[str, Draw]:
        if not _has_spans(records):
            labels, predictions = ([tag for r in records for tag in r[key]] for key in ("tags", "prediction"))
            return {"confusion.png": lambda f: figures.confusion(f, labels, predictions, self.classes.names)}
        kinds = {kind: scores for kind, scores in _span_scores(records).items() if isinstance(scores, dict)}
        f1 = {kind: scores["f1"] for kind, scores in kinds.items()}
        counts = Counter({kind: scores["number"] for kind, scores in kinds.items()})
        return {"spans.png": lambda figure: figures.bars(figure, f1, "F1 of spans", counts)}


def _has_spans(records: list[dict]) -> bool:
    return are_spans({tag for r in records for tag in (*r["tags"], *r["prediction"])})


def _span_scores(records: list[dict]) -> dict:
    """seqeval's figures, of all spans (`overall_...`) and of each kind."""
    tags = {"predictions": [r["prediction"] for r in records], "references": [r["tags"] for r in records]}
    return METRICS["seqeval"](**tags)


# ---- one of several answers -----------------------------------------------------------------------------------------


@dataclass
class MultipleChoice(Task):
    """Which of `choices` answers `question`: the number `label`. All questions have equally many choices."""

    hub_name: ClassVar[str] = "multiple-choice"
    auto_class: ClassVar[type] = AutoModelForMultipleChoice
    columns: ClassVar[tuple[str, ...]] = ("question", "choices", "label")
    collator: ClassVar[type] = DataCollatorForMultipleChoice

    def prepare(self, data: dict[str, Dataset], head: PreTrainedConfig | None = None) -> dict:
        count = len(next(iter(data.values()))[0]["choices"])
        for split, examples in data.items():
            for i, (choices, label) in enumerate(zip(examples["choices"], examples["label"])):
                if len(choices) != count:
                    raise ValueError(
                        f"data: example {i} of {split} has {len(choices)} choices, the first of all {count}: all must "
                        "have equally many"
                    )
                if label not in range(count):
                    raise ValueError(f"data: example {i} of {split}: label {label!r} is none of 0 to {count - 1}")
        return {}

    def encode_batch(self, batch: dict[str, list], numbers: list[int], encoder: Encoder) -> dict[str, list]:
        count = len(batch["choices"][0])
        questions = [question for question in batch["question"] for _ in range(count)]
        texts = (questions, [choice for choices in batch["choices"] for choice in choices])
        encoded = encoder(*texts)
        rows = {**encoded, "cut": encoder.was_cut(encoded, *texts)}
        rows = {k: [v[i : i + count] for i in range(0, len(v), count)] for k, v in rows.items()}
        return {**rows, "labels": batch["label"], "cut": [any(some) for some in rows["cut"]]}

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        return [
            {
                **{name: example[name] for name in self.columns},
                "prediction": int(scores.argmax()),
                "probabilities": scores.round(5).tolist(),
            }
            for example, scores in zip(examples, softmax(logits))
        ]

    def score(self, records: list[dict]) -> dict[str, float]:
        predictions, labels = [r["prediction"] for r in records], [r["label"] for r in records]
        return METRICS["accuracy"](predictions=predictions, references=labels)

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list]:
        return {"longest choice": [int(numpy.argmax([len(c) for c in r["choices"]])) for r in records]}

    def figures(self, records: list[dict]) -> dict[str, Draw]:
        return _calibration([max(r["probabilities"]) for r in records], records)
