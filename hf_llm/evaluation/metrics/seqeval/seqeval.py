"""Precision, recall and F1 of whole spans in tagged sequences (seqeval; CoNLL-2000's conlleval)."""

import datasets
import evaluate
from seqeval import scheme as schemes
from seqeval.metrics import accuracy_score, classification_report


class Seqeval(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self._compute.__doc__,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("string")),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references, scheme=None, mode=None, suffix=False, zero_division=0):
        """
        Args:
            predictions, references: tags like `B-PER`, `I-PER`, `O`, one list for each sentence.
            scheme: "IOB1", "IOB2", "IOE1", "IOE2", "IOBES" or "BILOU"; None reads as conlleval does.
            mode: "strict" (needs `scheme`) counts only spans that are well-formed in the scheme.
            suffix: tags are written `PER-B`.
            zero_division: a score whose denominator is 0.

        Returns:
            {"overall_precision", "overall_recall", "overall_f1", "overall_accuracy" (of tags)}, and for each type of
            span {"precision", "recall", "f1", "number"}

        Raises:
            ValueError: no such scheme.
        """
        if scheme is not None and scheme not in schemes.__dict__:
            raise ValueError(f"scheme = {scheme!r} is unknown; legal: IOB1, IOB2, IOE1, IOE2, IOBES, BILOU")
        report = classification_report(
            references,
            predictions,
            suffix=suffix,
            output_dict=True,
            scheme=scheme and getattr(schemes, scheme),
            mode=mode,
            zero_division=zero_division,
        )
        scores = {
            kind: {
                "precision": float(r["precision"]),
                "recall": float(r["recall"]),
                "f1": float(r["f1-score"]),
                "number": int(r["support"]),
            }
            for kind, r in report.items()
            if not kind.endswith(" avg")
        }
        overall = report["micro avg"]
        return scores | {
            "overall_precision": float(overall["precision"]),
            "overall_recall": float(overall["recall"]),
            "overall_f1": float(overall["f1-score"]),
            "overall_accuracy": float(accuracy_score(references, predictions)),
        }
