"""Metrics by name, over scikit-learn, SciPy, seqeval, sacrebleu and rouge-score; SQuAD's by its official rules.

    METRICS["f1"](predictions, references, average="macro")   # {"f1": 0.72}
    load_metric("f1").compute(predictions=..., references=..., average="macro")   # the same, as a module of `evaluate`

Names, options and results are those of the Hub's metrics. A metric of your own is a further entry of the table.
"""

import collections
import re
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def accuracy(predictions: Sequence[int], references: Sequence[int], **options) -> dict:
    """The share of predictions that are right.

    Args:
        options: `normalize` (False counts instead) and `sample_weight` of `sklearn.metrics.accuracy_score`.
    """
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(references, predictions, **options))}


def f1(predictions: Sequence[int], references: Sequence[int], *, average: str | None = "binary", **options) -> dict:
    """The harmonic mean of precision and recall.

    Args:
        average: "binary", "macro", "micro", "weighted", or None for one figure per class.
        options: `labels`, `pos_label`, `sample_weight`, `zero_division` of `sklearn.metrics.f1_score`.
    """
    from sklearn.metrics import f1_score

    score = f1_score(references, predictions, average=average, **{"zero_division": 0.0, **options})
    return {"f1": score.tolist() if average is None else float(score)}


def matthews_correlation(predictions: Sequence[int], references: Sequence[int], *, sample_weight=None) -> dict:
    """Matthews correlation coefficient, for unbalanced classes: 0 at chance, at most 1 (CoLA's metric)."""
    from sklearn.metrics import matthews_corrcoef

    return {"matthews_correlation": float(matthews_corrcoef(references, predictions, sample_weight=sample_weight))}


def pearsonr(predictions: Sequence[float], references: Sequence[float]) -> dict:
    """Pearson correlation: how linearly predictions follow references (STS-B's metric)."""
    from scipy import stats

    return {"pearsonr": float(stats.pearsonr(references, predictions).statistic)}


def spearmanr(predictions: Sequence[float], references: Sequence[float]) -> dict:
    """Spearman correlation: how well predictions rank what the references rank (STS-B's metric)."""
    from scipy import stats

    return {"spearmanr": float(stats.spearmanr(references, predictions).statistic)}


def mse(predictions: Sequence[float], references: Sequence[float], *, squared: bool = True, **options) -> dict:
    """Mean squared error, or with `squared=False` its root; options are scikit-learn's."""
    from sklearn.metrics import mean_squared_error, root_mean_squared_error

    error = mean_squared_error if squared else root_mean_squared_error
    return {"mse": float(error(references, predictions, **options))}


def seqeval(
    predictions: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    *,
    scheme: str | None = None,
    mode: str | None = None,
    suffix: bool = False,
    zero_division: float = 0,
) -> dict:
    """Precision, recall and F1 of whole spans in tagged sequences (CoNLL-2000's conlleval).

    Args:
        predictions, references: tags like `B-PER`, `I-PER`, `O`, one list for each sentence.
        scheme: "IOB1", "IOB2", "IOE1", "IOE2", "IOBES" or "BILOU"; None reads as conlleval does.
        mode: "strict" (needs `scheme`) counts only spans that are well-formed in the scheme.
        suffix: tags are written `PER-B`.
        zero_division: a score whose denominator is 0.

    Returns:
        {"overall_precision", "overall_recall", "overall_f1", "overall_accuracy" (of tags)}, and for each type of span
        {"precision", "recall", "f1", "number"}

    Raises:
        ValueError: no such scheme.
    """
    from seqeval import scheme as schemes
    from seqeval.metrics import accuracy_score, classification_report

    if scheme is not None and scheme not in schemes.__dict__:
        raise ValueError(f"scheme = {scheme!r} is unknown; legal: IOB1, IOB2, IOE1, IOE2, IOBES, BILOU")
    options = {"suffix": suffix, "scheme": scheme and getattr(schemes, scheme), "mode": mode}
    report = classification_report(references, predictions, output_dict=True, zero_division=zero_division, **options)
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
    scores = {
        kind: {**{ours: float(row[theirs]) for ours, theirs in names.items()}, "number": int(row["support"])}
        for kind, row in report.items()
        if not kind.endswith(" avg")
    }
    overall = {f"overall_{ours}": float(report["micro avg"][theirs]) for ours, theirs in names.items()}
    return {**scores, **overall, "overall_accuracy": float(accuracy_score(references, predictions))}


def are_spans(tags: Iterable[str]) -> bool:
    """Whether tags are those of spans: `O`, and `B-`, `I-` (`E-`, `S-`, ...) before the kind."""
    return all(tag == "O" or tag[1:2] == "-" for tag in tags)


def _several(references: Sequence[str] | Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """References of each prediction, where there may be one only."""
    return [[r] if isinstance(r, str) else r for r in references]


def _corpus_score(metric, predictions, references, fields: Sequence[str]) -> dict:
    """A score of sacrebleu and its signature; it has references by rank, None where one has fewer than others."""
    several = _several(references)
    ranks = [[r[i] if i < len(r) else None for r in several] for i in range(max(map(len, several)))]
    result = metric.corpus_score(predictions, ranks)
    return {name: getattr(result, name) for name in fields} | {"signature": str(metric.get_signature())}


def sacrebleu(predictions: Sequence[str], references: Sequence, **options) -> dict:
    """BLEU of a corpus, with its own tokenizer and a signature to report.

    Args:
        predictions: detokenized text.
        references: detokenized text, one or a list of them for each prediction.
        options: of `sacrebleu.BLEU`: `tokenize` ("13a", "intl", "char", "zh", ...), `lowercase`, `smooth_method`
            ("exp", "floor", "add-k", "none"), `smooth_value`, `effective_order` (for single sentences).

    Returns:
        {"score" (0 to 100), "precisions", "counts", "totals", "bp", "sys_len", "ref_len", "signature"}
    """
    from sacrebleu import BLEU

    fields = ("score", "precisions", "counts", "totals", "bp", "sys_len", "ref_len")
    return _corpus_score(BLEU(**{"tokenize": "13a", **options}), predictions, references, fields)


def chrf(predictions: Sequence[str], references: Sequence, **options) -> dict:
    """chrF: F-score of character n-grams, with `word_order=2` chrF++.

    Args:
        predictions, references: as those of `sacrebleu`.
        options: of `sacrebleu.CHRF`: `char_order`, `word_order`, `beta`, `lowercase`, `whitespace`, `eps_smoothing`.

    Returns:
        {"score" (0 to 100), "char_order", "word_order", "beta", "signature"}
    """
    from sacrebleu import CHRF

    return _corpus_score(CHRF(**options), predictions, references, ("score", "char_order", "word_order", "beta"))


def rouge(
    predictions: Sequence[str],
    references: Sequence,
    *,
    rouge_types: Sequence[str] = ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    use_aggregator: bool = True,
    use_stemmer: bool = False,
) -> dict:
    """ROUGE: overlap of n-grams and longest common subsequences (Google's implementation).

    Args:
        predictions: text; rougeLsum takes each line for a sentence.
        references: text, one or a list of them for each prediction (the best one counts).
        rouge_types: "rouge1" to "rouge9", "rougeL", "rougeLsum".
        use_aggregator: the mean over examples; False gives a list.
        use_stemmer: Porter's stemmer first.

    Returns:
        F-scores between 0 and 1 by type
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(rouge_types), use_stemmer=use_stemmer)
    scores = [scorer.score_multi(r, p) for r, p in zip(_several(references), predictions, strict=True)]
    by_type = {kind: [score[kind].fmeasure for score in scores] for kind in rouge_types}
    return {kind: sum(f) / len(f) if use_aggregator else f for kind, f in by_type.items()}


# ---- answers, by the rules of evaluate-v1.1.py and evaluate-v2.0.py ------------------------------------------------


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and English articles, words apart by one space."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(prediction: str, reference: str) -> float:
    """1.0 if both are the same after `normalize_answer`."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words of both after `normalize_answer`; with an empty one, 1.0 if both are empty."""
    predicted, right = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not predicted or not right:
        return float(predicted == right)
    common = sum((collections.Counter(predicted) & collections.Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))


def exact_match(predictions: Sequence[str], references: Sequence[str], *, normalize: bool = False) -> dict:
    """The share of predictions that equal their references, between 0 and 1; `normalize`: as SQuAD compares."""
    change = normalize_answer if normalize else str
    right = [change(p) == change(r) for p, r in zip(predictions, references, strict=True)]
    return {"exact_match": sum(right) / len(right)}


def squad(predictions: Sequence[dict], references: Sequence[dict]) -> dict:
    """Exact match and F1 of extracted answers, 0 to 100: SQuAD 1.1 (https://arxiv.org/abs/1606.05250).

    Args:
        predictions: {"id", "prediction_text"} of each question.
        references: {"id", "answers": {"text": [...], "answer_start": [...]}} of each question, in any order.

    Raises:
        KeyError: a question has no prediction.
    """
    texts = {p["id"]: p["prediction_text"] for p in predictions}
    pairs = [(texts[r["id"]], r["answers"]["text"]) for r in references]
    scores = {"exact_match": exact, "f1": token_f1}
    return {
        name: 100 * sum(max(score(t, r) for r in rs) for t, rs in pairs) / len(pairs) for name, score in scores.items()
    }


def squad_v2(predictions: Sequence[dict], references: Sequence[dict], *, no_answer_threshold: float = 1.0) -> dict:
    """Exact match and F1 of extracted answers, some of which are not there: SQuAD 2.0 (https://arxiv.org/abs/1806.03822).

    Args:
        predictions: {"id", "prediction_text" ("" for no answer), "no_answer_probability"} of each question.
        references: {"id", "answers": {"text": [...], "answer_start": [...]}} of each question, in any order; without
            texts it has no answer.
        no_answer_threshold: a prediction whose `no_answer_probability` is greater counts as "".

    Returns:
        {"exact", "f1", "total"}, the same of the questions with ("HasAns_exact", ...) and without an answer
        ("NoAns_exact", ...), and the best that any threshold would reach ("best_exact", "best_exact_thresh",
        "best_f1", "best_f1_thresh"); scores between 0 and 100

    Raises:
        KeyError: a question has no prediction.
    """
    by_id = {p["id"]: p for p in predictions}
    questions = [(by_id[r["id"]], r["answers"]["text"]) for r in references]
    results = {}
    for name, score in {"exact": exact, "f1": token_f1}.items():
        scored = []  # (whether there is an answer, score, prediction)
        for prediction, texts in questions:
            right = [text for text in texts if normalize_answer(text)] or [""]
            scored.append((bool(texts), max(score(prediction["prediction_text"], r) for r in right), prediction))
        for group, kinds in {"": (True, False), "HasAns_": (True,), "NoAns_": (False,)}.items():
            members = [
                float(not answerable) if prediction["no_answer_probability"] > no_answer_threshold else value
                for answerable, value, prediction in scored
                if answerable in kinds
            ]
            if members:
                results |= {f"{group}{name}": 100 * sum(members) / len(members), f"{group}total": len(members)}
        results[f"best_{name}"], results[f"best_{name}_thresh"] = _best_threshold(scored)
    return results


def _best_threshold(scored: list[tuple[bool, float, dict]]) -> tuple[float, float]:
    """The best mean score (0 to 100) of any threshold, and that threshold: answer one more question at a time, those
    first that most likely have an answer."""
    current = best = sum(not answerable for answerable, *_ in scored)
    threshold = 0.0
    for answerable, value, prediction in sorted(scored, key=lambda s: s[2]["no_answer_probability"]):
        if answerable:
            current += value
        elif prediction["prediction_text"]:
            current -= 1
        if current > best:
            best, threshold = current, prediction["no_answer_probability"]
    return 100 * best / len(scored), threshold


# ---- the table -----------------------------------------------------------------------------------------------------

_ALL = (accuracy, chrf, exact_match, f1, matthews_correlation, mse, pearsonr, rouge, sacrebleu, seqeval, spearmanr)
METRICS: dict[str, Callable[..., dict]] = {metric.__name__: metric for metric in (*_ALL, squad, squad_v2)}


def load_metric(name: str, **kwargs):
    """A metric as a module of the `evaluate` library, ready for `add_batch` and `compute`.

    Args:
        name: one of `METRICS`, a folder that holds a module, or (online) a metric of the Hub as `user/name`.
        kwargs: as in `evaluate.load`. Examples are kept in memory unless several processes share the metric.

    Returns:
        `evaluate.EvaluationModule`

    Raises:
        ValueError: there is no such metric.
    """
    import evaluate

    kwargs = {"keep_in_memory": kwargs.get("num_process", 1) == 1, **kwargs}
    if name in METRICS:
        return evaluate.load(str(Path(__file__).parent / "evaluation" / "metric.py"), name, **kwargs)
    if "/" not in name and not Path(name).exists():
        raise ValueError(f"metric {name!r} is unknown; legal: {', '.join(METRICS)}, a folder, or user/name on the Hub")
    return evaluate.load(name, **kwargs)
