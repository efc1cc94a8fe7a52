"""Exact match and F1 of extracted answers by the rules of SQuAD 1.1 (https://arxiv.org/abs/1606.05250)."""

import datasets
import evaluate

from hf_llm.evaluation.answers import best_over_references, exact, token_f1


class Squad(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        answers = {"text": datasets.List(text), "answer_start": datasets.List(datasets.Value("int64"))}
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self._compute.__doc__,
            features=datasets.Features(
                {
                    "predictions": {"id": text, "prediction_text": text},
                    "references": {"id": text, "answers": answers},
                }
            ),
        )

    def _compute(self, predictions, references):
        """
        Args:
            predictions: {"id", "prediction_text"} of each question.
            references: {"id", "answers": {"text": [...], "answer_start": [...]}} of each question, in any order.

        Returns:
            {"exact_match", "f1"}, both between 0 and 100

        Raises:
            KeyError: a question has no prediction.
        """
        texts = {p["id"]: p["prediction_text"] for p in predictions}
        pairs = [(texts[r["id"]], r["answers"]["text"]) for r in references]
        return {
            name: 100 * sum(best_over_references(score, *pair) for pair in pairs) / len(pairs)
            for name, score in {"exact_match": exact, "f1": token_f1}.items()
        }
