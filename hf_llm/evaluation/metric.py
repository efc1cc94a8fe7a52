"""The metrics of `hf_llm.metrics` as a module of `evaluate`: `evaluate.load("hf_llm/evaluation/metric.py", "f1")`."""

import datasets
import evaluate

from hf_llm.metrics import METRICS


def _pair(feature) -> dict:
    return {"predictions": feature, "references": feature}


_INT, _FLOAT, _TEXT = (datasets.Value(kind) for kind in ("int64", "float64", "string"))
_CLASSES, _NUMBERS, _TEXTS = _pair(_INT), _pair(_FLOAT), _pair(_TEXT)
_ONE_OR_SEVERAL = [{"predictions": _TEXT, "references": datasets.List(_TEXT)}, _TEXTS]
_ANSWER = {"id": _TEXT, "prediction_text": _TEXT}
_ANSWERS = {"id": _TEXT, "answers": {"text": datasets.List(_TEXT), "answer_start": datasets.List(_INT)}}
# metric -> columns and their types, or several sets of them; others have classes
COLUMNS = {
    **dict.fromkeys(("mse", "pearsonr", "spearmanr"), _NUMBERS),
    **dict.fromkeys(("chrf", "rouge", "sacrebleu"), _ONE_OR_SEVERAL),
    "exact_match": _TEXTS,
    "seqeval": _pair(datasets.List(_TEXT)),
    "squad": {"predictions": _ANSWER, "references": _ANSWERS},
    "squad_v2": {"predictions": {**_ANSWER, "no_answer_probability": _FLOAT}, "references": _ANSWERS},
}


class Metric(evaluate.Metric):
    """The metric that the configuration's name says."""

    def _info(self):
        columns = COLUMNS.get(self.config_name, _CLASSES)
        several = columns if isinstance(columns, list) else [columns]
        features = [datasets.Features(one) for one in several]
        about = METRICS[self.config_name].__doc__
        return evaluate.MetricInfo(
            description=about,
            citation="",
            inputs_description=about,
            features=features if len(features) > 1 else features[0],
        )

    def _compute(self, predictions, references, **options):
        return METRICS[self.config_name](predictions, references, **options)
