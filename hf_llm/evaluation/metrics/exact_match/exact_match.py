"""Exact match: the share of predicted strings that equal their references."""

import datasets
import evaluate

from hf_llm.evaluation.answers import normalize_answer


class ExactMatch(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self._compute.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions, references, normalize=False):
        """
        Args:
            predictions, references: strings.
            normalize: as SQuAD does: case, punctuation, English articles and the width of white space do not count.

        Returns:
            {"exact_match": float between 0 and 1}
        """
        change = normalize_answer if normalize else str
        right = [change(p) == change(r) for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": sum(right) / len(right)}
