"""Scores of short answers by SQuAD's rules, references in the shape that sacrebleu reads, tags that seqeval reads.

The rules are those of the official scripts `evaluate-v1.1.py` and `evaluate-v2.0.py` (https://arxiv.org/abs/1806.03822).
"""

import collections
import re
import string
from collections.abc import Callable, Iterable


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and English articles, words apart by one space."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(prediction: str, reference: str) -> float:
    """1.0 if both are the same after `normalize_answer`."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words of both after `normalize_answer`; with an empty one, 1.0 if both are empty."""
    predicted, right = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not predicted or not right:
        return float(predicted == right)
    common = sum((collections.Counter(predicted) & collections.Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))


def best_over_references(score: Callable[[str, str], float], prediction: str, references: list[str]) -> float:
    """The score against the reference that fits best."""
    return max(score(prediction, reference) for reference in references)


def reference_streams(references: list[str] | list[list[str]]) -> list[list[str | None]]:
    """References by prediction -> by rank: sacrebleu's streams, `None` where a prediction has fewer than others."""
    several = [[r] if isinstance(r, str) else r for r in references]
    return [[r[i] if i < len(r) else None for r in several] for i in range(max(map(len, several)))]


def are_spans(tags: Iterable[str]) -> bool:
    """Whether tags are those of spans: `O`, and `B-`, `I-` (`E-`, `S-`, ...) before the kind."""
    return all(tag == "O" or tag[1:2] == "-" for tag in tags)
