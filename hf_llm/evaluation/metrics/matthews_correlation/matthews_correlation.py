"""Matthews correlation coefficient, for unbalanced classes (scikit-learn; CoLA's metric)."""

import datasets
import evaluate
from sklearn.metrics import matthews_corrcoef


class MatthewsCorrelation(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self._compute.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, sample_weight=None):
        """
        Args:
            predictions, references: class numbers.
            sample_weight: weight of each example.

        Returns:
            {"matthews_correlation": float between -1 and 1, 0 at chance}
        """
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions, sample_weight=sample_weight))}
