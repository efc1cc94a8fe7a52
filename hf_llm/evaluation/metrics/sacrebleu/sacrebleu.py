"""BLEU of a corpus, with its own tokenizer and a signature to report (sacrebleu)."""

import datasets
import evaluate
import sacrebleu

from hf_llm.evaluation.answers import reference_streams


class Sacrebleu(evaluate.Metric):
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
        tokenize="13a",
        lowercase=False,
        smooth_method="exp",
        smooth_value=None,
        effective_order=False,
    ):
        """
        Args:
            predictions: detokenized text.
            references: detokenized text, one or a list of them for each prediction.
            tokenize: "13a", "intl", "char", "zh", "none", ...
            lowercase: case does not count.
            smooth_method: "exp", "floor", "add-k" or "none", with `smooth_value`.
            effective_order: leave out orders without a match (for single sentences).

        Returns:
            {"score" (0 to 100), "precisions", "counts", "totals", "bp", "sys_len", "ref_len", "signature"}
        """
        bleu = sacrebleu.BLEU(
            tokenize=tokenize,
            lowercase=lowercase,
            smooth_method=smooth_method,
            smooth_value=smooth_value,
            effective_order=effective_order,
        )
        result = bleu.corpus_score(predictions, reference_streams(references))
        fields = ("score", "precisions", "counts", "totals", "bp", "sys_len", "ref_len")
        return {name: getattr(result, name) for name in fields} | {"signature": str(bleu.get_signature())}
