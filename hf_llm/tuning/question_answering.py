"""Extractive question answering: where in `context` the answer to `question` stands, or that it is not there.

Contexts that are too long are read in overlapping windows, and the best span of all windows is the answer, as in
BERT's code for SQuAD (https://arxiv.org/abs/1810.04805, section 4.2 and 4.3; https://github.com/google-research/bert).
"""

import bisect
from dataclasses import dataclass
from typing import ClassVar

import numpy
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, PreTrainedConfig

from hf_llm.metrics import METRICS

from . import baselines, figures
from .examples import Encoder
from .task import Draw, Task, softmax


@dataclass
class QuestionAnswering(Task):
    """
    Attributes:
        stride: tokens that neighbouring windows share.
        n_best: starts and ends that are looked at, and answers that are kept.
        max_answer_tokens: the longest answer.
        null_threshold: how much better than the best span "no answer" must score to be given (of data that has such
            questions).
    """

    stride: int = 128
    n_best: int = 20
    max_answer_tokens: int = 30
    null_threshold: float = 0.0

    hub_name: ClassVar[str] = "question-answering"
    auto_class: ClassVar[type] = AutoModelForQuestionAnswering
    columns: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    label_names: ClassVar[list[str]] = ["start_positions", "end_positions"]
    needs_offsets: ClassVar[bool] = True

    def __post_init__(self):
        for name, lowest in (("stride", 0), ("n_best", 1), ("max_answer_tokens", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"task.{name} = {getattr(self, name)} must be at least {lowest}")

    def prepare(self, data: dict[str, Dataset], head: PreTrainedConfig | None = None) -> dict:
        for split, examples in data.items():
            for i, (context, answers) in enumerate(zip(examples["context"], examples["answers"])):
                if not _has_places(answers):
                    raise ValueError(
                        f"data: example {i} of {split} has the answers {answers!r}, which are not those of SQuAD: "
                        "{text: [...], answer_start: [...]}, a place in the context for each text"
                    )
                for text, start in zip(answers["text"], answers["answer_start"]):
                    if context[start : start + len(text)] != text:
                        raise ValueError(f"data: example {i} of {split}: the context has no {text!r} at {start}")
        self.has_null = any(not answers["text"] for examples in data.values() for answers in examples["answers"])
        return {}

    def encode(self, examples: Dataset, encoder: Encoder) -> Dataset:
        """One feature for each window, with `example` (its example's number) and `offsets` of its context tokens."""
        tokenizer = encoder.tokenizer
        questions = tokenizer(list(examples["question"]), add_special_tokens=False)["input_ids"]
        longest = max(map(len, questions)) + tokenizer.num_special_tokens_to_add(pair=True)
        if longest + self.stride >= encoder.max_length:
            raise ValueError(
                f"data.max_length = {encoder.max_length} leaves no room: the longest question takes {longest} tokens, "
                f"and task.stride = {self.stride}"
            )
        return super().encode(examples, encoder)

    def encode_batch(self, batch: dict[str, list], numbers: list[int], encoder: Encoder) -> dict[str, list]:
        windows = {"truncation": "only_second", "stride": self.stride, "return_overflowing_tokens": True}
        encoded = encoder(batch["question"], batch["context"], **windows, return_offsets_mapping=True)
        sources, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        rows = {"example": [], "offsets": [], "null": [], "start_positions": [], "end_positions": []}
        for i, source in enumerate(sources):
            parts = encoded.sequence_ids(i)  # 1 for tokens of the context
            spans = [list(span) if part == 1 else [-1, -1] for span, part in zip(offsets[i], parts)]
            null = _null_position(encoded["input_ids"][i], encoder.tokenizer.cls_token_id)
            start, end = _token_span(spans, batch["answers"][source]) or (null, null)
            for name, value in zip(rows, (numbers[source], spans, null, start, end)):
                rows[name].append(value)
        return {**encoded, **rows, "cut": [False] * len(sources)}

    def shrink(self, logits, labels):
        return logits[:2]  # of starts and ends

    def decode(self, logits, features: Dataset, examples: Dataset) -> list[dict]:
        starts, ends = logits
        found = [[] for _ in range(len(examples))]  # (score, start, end) in characters, of all windows
        nulls = numpy.full(len(examples), numpy.inf)
        for feature, start, end in zip(features.with_format(None), starts, ends):
            number, null = feature["example"], feature["null"]
            nulls[number] = min(nulls[number], start[null] + end[null])
            found[number] += self._spans(start, end, numpy.asarray(feature["offsets"]))
        return [self._record(example, found[i], nulls[i]) for i, example in enumerate(examples)]

    def _spans(self, start: numpy.ndarray, end: numpy.ndarray, offsets: numpy.ndarray) -> list[tuple]:
        """The `n_best` spans of a window that are in the context, in order, and not too long."""
        context = offsets[:, 0] >= 0
        firsts = _best(numpy.where(context, start[: len(offsets)], -numpy.inf), self.n_best)
        lasts = _best(numpy.where(context, end[: len(offsets)], -numpy.inf), self.n_best)
        first, last = (grid.ravel() for grid in numpy.meshgrid(firsts, lasts))
        legal = context[first] & context[last] & (first <= last) & (last < first + self.max_answer_tokens)
        first, last = first[legal], last[legal]
        scores = start[first] + end[last]
        order = numpy.argsort(-scores)[: self.n_best]
        return [(float(scores[i]), int(offsets[first[i], 0]), int(offsets[last[i], 1])) for i in order]

    def _record(self, example: dict, spans: list[tuple], null: float) -> dict:
        spans = sorted(spans, reverse=True)[: self.n_best]
        answers = [{"score": score, "text": example["context"][start:end]} for score, start, end in spans]
        answers = answers or [{"score": -1e9, "text": ""}]
        best = answers[0]
        probabilities = softmax(numpy.array([a["score"] for a in answers] + [null] * self.has_null))
        silent = self.has_null and null - best["score"] > self.null_threshold
        return {
            "question": example["question"],
            "prediction": "" if silent else best["text"],
            "answers": {"text": list(example["answers"]["text"]), "answer_start": example["answers"]["answer_start"]},
            "no_answer_probability": float(probabilities[-1]) if self.has_null else 0.0,
            "n_best": [{"text": a["text"], "probability": float(p)} for a, p in zip(answers, probabilities)],
            "context_length": len(example["context"]),
        }

    def score(self, records: list[dict]) -> dict[str, float]:
        """SQuAD's figures, 0 to 100; those of its second version where some questions have no answer."""
        version = "squad_v2" if any(not r["answers"]["text"] for r in records) else "squad"
        predictions = [{"id": str(i), "prediction_text": r["prediction"]} for i, r in enumerate(records)]
        references = [{"id": str(i), "answers": r["answers"]} for i, r in enumerate(records)]
        if version == "squad_v2":
            for prediction, record in zip(predictions, records):
                prediction["no_answer_probability"] = record["no_answer_probability"]
        scores = METRICS[version](predictions=predictions, references=references)
        return {ours: scores[theirs] for theirs, ours in _FIGURES.items() if theirs in scores}

    def baselines(self, train: Dataset, examples: Dataset, records: list[dict]) -> dict[str, list]:
        guesses = [baselines.line_like_question(e["question"], e["context"]) for e in examples]
        return {"line with most words of the question, after its colon": guesses}

    def figures(self, records: list[dict]) -> dict[str, Draw]:
        names = [*(f"< {limit:,}" for limit in _LENGTHS), f"≥ {_LENGTHS[-1]:,}"]
        groups = {name: [] for name in names}
        for record in records:
            groups[names[bisect.bisect_right(_LENGTHS, record["context_length"])]].append(record)
        groups = {name: group for name, group in groups.items() if group}
        f1 = {name: self.score(group)["f1"] for name, group in groups.items()}
        counts = {name: len(group) for name, group in groups.items()}
        return {"lengths.png": lambda figure: figures.bars(figure, f1, "F1 by characters of the context", counts)}


# name of a figure in SQuAD's scripts, of the first or the second version -> ours
_FIGURES = {
    "exact_match": "exact_match",
    "exact": "exact_match",
    "f1": "f1",
    "HasAns_f1": "f1_answerable",
    "NoAns_f1": "f1_unanswerable",
}
_LENGTHS = (500, 1000, 2000, 4000)


def _has_places(answers) -> bool:
    """Whether `answers` are lists of texts and places, equally many."""
    lists = [answers.get(name) for name in ("text", "answer_start")] if isinstance(answers, dict) else [None]
    return all(isinstance(values, list) for values in lists) and len(lists[0]) == len(lists[-1])


def _null_position(ids: list[int], cls: int | None) -> int:
    """The token that stands for "no answer": [CLS]; where there is none, the last one, which has seen all others even
    in a decoder."""
    return ids.index(cls) if cls in ids else len(ids) - 1


def _token_span(spans: list[list[int]], answers: dict) -> tuple[int, int] | None:
    """First and last token of the first answer, or None if it is not wholly in this window."""
    if not answers["text"]:
        return None
    first = answers["answer_start"][0]
    last = first + len(answers["text"][0])
    inside = [i for i, (start, end) in enumerate(spans) if start >= 0 and end > first and start < last]
    if not inside or spans[inside[0]][0] > first or spans[inside[-1]][1] < last:
        return None
    return inside[0], inside[-1]


def _best(scores: numpy.ndarray, count: int) -> numpy.ndarray:
    """Places of the highest scores."""
    count = min(count, len(scores))
    return numpy.argpartition(-scores, count - 1)[:count]
