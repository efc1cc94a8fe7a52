"""Spearman correlation: how well predictions rank what the references rank (scipy; STS-B's metric)."""

import datasets
import evaluate
from scipy.stats import spearmanr


class Spearmanr(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self._compute.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float64"),
                    "references": datasets.Value("float64"),
                }
            ),
        )

    def _compute(self, predictions, references):
        """
        Args:
            predictions, references: numbers.

        Returns:
            {"spearmanr": float between -1 and 1}
        """
        return {"spearmanr": float(spearmanr(references, predictions).statistic)}
