"""ROUGE: overlap of n-grams and longest common subsequences (rouge-score, Google's implementation)."""

import datasets
import evaluate
from rouge_score import rouge_scorer


class Rouge(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=self._compute.__doc__,
            features=[
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self,
        predictions,
        references,
        rouge_types=("rouge1", "rouge2", "rougeL", "rougeLsum"),
        use_aggregator=True,
        use_stemmer=False,
    ):
        """
        Args:
            predictions: text; rougeLsum takes each line for a sentence.
            references: text, one or a list of them for each prediction (the best one counts).
            rouge_types: "rouge1" to "rouge9", "rougeL", "rougeLsum".
            use_aggregator: the mean over examples; False gives a list.
            use_stemmer: Porter's stemmer first.

        Returns:
            F-scores between 0 and 1 by type
        """
        scorer = rouge_scorer.RougeScorer(list(rouge_types), use_stemmer=use_stemmer)
        several = [[r] if isinstance(r, str) else r for r in references]
        scores = [scorer.score_multi(r, p) for r, p in zip(several, predictions, strict=True)]
        by_type = {kind: [score[kind].fmeasure for score in scores] for kind in rouge_types}
        return {kind: sum(f) / len(f) if use_aggregator else f for kind, f in by_type.items()}
