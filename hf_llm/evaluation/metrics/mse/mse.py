"""Mean squared error (scikit-learn)."""

import datasets
import evaluate
from sklearn.metrics import mean_squared_error, root_mean_squared_error


class Mse(evaluate.Metric):
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

    def _compute(self, predictions, references, squared=True, sample_weight=None):
        """
        Args:
            predictions, references: numbers.
            squared: False gives its square root.
            sample_weight: weight of each example.

        Returns:
            {"mse": float}
        """
        error = mean_squared_error if squared else root_mean_squared_error
        return {"mse": float(error(references, predictions, sample_weight=sample_weight))}
