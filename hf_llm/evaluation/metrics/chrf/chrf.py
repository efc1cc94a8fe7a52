"""chrF: F-score of character n-grams, with `word_order=2` chrF++ (sacrebleu)."""

import datasets
import evaluate
import sacrebleu

from hf_llm.evaluation.answers import reference_streams


class Chrf(evaluate.Metric):
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
        char_order=6,
        word_order=0,
        beta=2,
        lowercase=False,
        whitespace=False,
        eps_smoothing=False,
    ):
        """
        Args:
            predictions: detokenized text.
            references: detokenized text, one or a list of them for each prediction.
            char_order, word_order: the longest n-grams.
            beta: how much more recall counts than precision.
            lowercase: case does not count.
            whitespace: white space counts.
            eps_smoothing: smooth as chrF++.py, NLTK and Moses do.

        Returns:
            {"score" (0 to 100), "char_order", "word_order", "beta", "signature"}
        """
        chrf = sacrebleu.CHRF(char_order, word_order, beta, lowercase, whitespace, eps_smoothing)
        result = chrf.corpus_score(predictions, reference_streams(references))
        fields = ("score", "char_order", "word_order", "beta")
        return {name: getattr(result, name) for name in fields} | {"signature": str(chrf.get_signature())}
