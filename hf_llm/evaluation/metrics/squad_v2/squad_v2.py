"""Exact match and F1 of extracted answers, some of which are not there: SQuAD 2.0 (https://arxiv.org/abs/1806.03822)."""

import datasets
import evaluate

from hf_llm.evaluation.answers import best_over_references, exact, normalize_answer, token_f1


class SquadV2(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        answers = {"text": datasets.List(text), "answer_start": datasets.List(datasets.Value("int64"))}
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self._compute.__doc__,
            features=datasets.Features(
                {
                    "predictions": {
                        "id": text,
                        "prediction_text": text,
                        "no_answer_probability": datasets.Value("float64"),
                    },
                    "references": {"id": text, "answers": answers},
                }
            ),
        )

    def _compute(self, predictions, references, no_answer_threshold=1.0):
        """
        Args:
            predictions: {"id", "prediction_text" ("" for no answer), "no_answer_probability"} of each question.
            references: {"id", "answers": {"text": [...], "answer_start": [...]}} of each question, in any order;
                without texts it has no answer.
            no_answer_threshold: a prediction whose `no_answer_probability` is greater counts as "".

        Returns:
            {"exact", "f1", "total"}, the same of the questions with ("HasAns_exact", ...) and without an answer
            ("NoAns_exact", ...), and the best that any threshold would reach ("best_exact", "best_exact_thresh",
            "best_f1", "best_f1_thresh"); scores between 0 and 100

        Raises:
            KeyError: a question has no prediction.
        """
        by_id = {p["id"]: p for p in predictions}
        questions = [(by_id[r["id"]], r["answers"]["text"]) for r in references]
        results = {}
        for name, score in {"exact": exact, "f1": token_f1}.items():
            scored = [_Scored(prediction, texts, score) for prediction, texts in questions]
            groups = {
                "": scored,
                "HasAns_": [s for s in scored if s.answerable],
                "NoAns_": [s for s in scored if not s.answerable],
            }
            for group, members in groups.items():
                if members:
                    total = sum(s.at(no_answer_threshold) for s in members)
                    results |= {f"{group}{name}": 100 * total / len(members), f"{group}total": len(members)}
            results[f"best_{name}"], results[f"best_{name}_thresh"] = _best(scored)
        return results


class _Scored:
    """One question under one score."""

    def __init__(self, prediction: dict, texts: list[str], score):
        self.answerable = bool(texts)
        self.no_answer_probability = prediction["no_answer_probability"]
        self.silent = not prediction["prediction_text"]
        right = [text for text in texts if normalize_answer(text)] or [""]
        self.score = best_over_references(score, prediction["prediction_text"], right)

    def at(self, threshold: float) -> float:
        return float(not self.answerable) if self.no_answer_probability > threshold else self.score


def _best(scored: list[_Scored]) -> tuple[float, float]:
    """The best mean score (0 to 100) of any threshold, and that threshold: answer one more question at a time, those
    first that most likely have an answer."""
    current = best = sum(not s.answerable for s in scored)
    threshold = 0.0
    for question in sorted(scored, key=lambda s: s.no_answer_probability):
        if question.answerable:
            current += question.score
        elif not question.silent:
            current -= 1
        if current > best:
            best, threshold = current, question.no_answer_probability
    return 100 * best / len(scored), threshold
