"""F1: the harmonic mean of precision and recall (scikit-learn)."""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
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

    def _compute(
        self,
        predictions,
        references,
        labels=None,
        pos_label=1,
        average="binary",
        sample_weight=None,
        zero_division=0.0,
    ):
        """
        Args:
            predictions, references: class numbers.
            labels: classes that count, where `average` is not "binary".
            pos_label: the positive class, where `average` is "binary".
            average: "binary", "macro", "micro", "weighted", or None for one figure per class.
            sample_weight: weight of each example.
            zero_division: the score of a class that is neither predicted nor there.

        Returns:
            {"f1": float, or a list with `average=None`}
        """
        score = f1_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label,
            average=average,
            sample_weight=sample_weight,
            zero_division=zero_division,
        )
        return {"f1": score.tolist() if average is None else float(score)}
