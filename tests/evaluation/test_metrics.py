"""Each metric against an implementation that it does not use."""

import collections
import math

import evaluate
import nltk.translate.bleu_score
import nltk.translate.chrf_score
import numpy as np
import pytest

from hf_llm.evaluation import METRICS, load_metric


PREDICTED = [0, 1, 2, 2, 1, 0, 1, 2, 0, 1]
RIGHT = [0, 1, 1, 2, 1, 0, 2, 2, 1, 0]
NUMBERS = ([0.1, 2.5, 2.4, 7.0, 3.3], [1.0, 2.0, 3.0, 5.0, 4.0])


def compute(metric: str, predictions, references, **options) -> dict:
    return METRICS[metric](predictions, references, **options)


def test_evaluate_opens_every_metric_by_the_path_of_the_module(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in METRICS:
        metric = evaluate.load("hf_llm/evaluation/metric.py", name)
        assert metric.description == METRICS[name].__doc__


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("accuracy", (PREDICTED, RIGHT)),
        ("spearmanr", NUMBERS),
        ("exact_match", (["a b", "c"], ["a b", "d"])),
        ("seqeval", ([["B-X", "O"], ["O"]], [["B-X", "O"], ["B-X"]])),
        ("rouge", (["a b", "c"], [["a b", "a"], ["d"]])),
    ],
)
def test_modules_of_evaluate_gather_batches(name, pair):
    metric = load_metric(name)
    for predictions, references in zip(*([side[:1], side[1:]] for side in pair), strict=True):
        metric.add_batch(predictions=predictions, references=references)
    assert metric.compute() == METRICS[name](*pair)


def test_modules_of_evaluate_check_the_types():
    with pytest.raises(ValueError, match="invalid literal"):
        load_metric("accuracy").compute(predictions=["a"], references=["b"])


def test_unknown_metric_names_the_legal_ones():
    with pytest.raises(ValueError, match="metric 'acuracy' is unknown; legal: accuracy, chrf"):
        load_metric("acuracy")


def test_accuracy():
    right = [p == r for p, r in zip(PREDICTED, RIGHT)]
    assert compute("accuracy", PREDICTED, RIGHT) == {"accuracy": np.mean(right)}
    assert compute("accuracy", PREDICTED, RIGHT, normalize=False) == {"accuracy": sum(right)}


def f1_by_hand(positive: int) -> float:
    hits = sum(p == r == positive for p, r in zip(PREDICTED, RIGHT))
    return 2 * hits / (PREDICTED.count(positive) + RIGHT.count(positive))


def test_f1():
    by_class = [f1_by_hand(c) for c in range(3)]
    assert compute("f1", PREDICTED, RIGHT, average=None)["f1"] == pytest.approx(by_class)
    assert compute("f1", PREDICTED, RIGHT, average="macro")["f1"] == pytest.approx(np.mean(by_class))
    weights = [RIGHT.count(c) / len(RIGHT) for c in range(3)]
    assert compute("f1", PREDICTED, RIGHT, average="weighted")["f1"] == pytest.approx(np.dot(weights, by_class))
    binary = [[int(x == 1) for x in side] for side in (PREDICTED, RIGHT)]
    assert compute("f1", *binary)["f1"] == pytest.approx(f1_by_hand(1))


def test_matthews_correlation():
    binary = [[int(x == 1) for x in side] for side in (PREDICTED, RIGHT)]
    phi = np.corrcoef(*binary)[0, 1]  # of two classes, it is Pearson's correlation
    assert compute("matthews_correlation", *binary)["matthews_correlation"] == pytest.approx(phi)


def test_correlations_and_error():
    predicted, right = np.array(NUMBERS)
    assert compute("pearsonr", *NUMBERS)["pearsonr"] == pytest.approx(np.corrcoef(predicted, right)[0, 1])
    ranks = [np.argsort(np.argsort(side)) for side in (predicted, right)]
    assert compute("spearmanr", *NUMBERS)["spearmanr"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    error = np.mean((predicted - right) ** 2)
    assert compute("mse", *NUMBERS)["mse"] == pytest.approx(error)
    assert compute("mse", *NUMBERS, squared=False)["mse"] == pytest.approx(math.sqrt(error))


def test_exact_match():
    predictions, references = ["The cat!", "a dog", "bird"], ["cat", "a dog", "birds"]
    assert compute("exact_match", predictions, references) == {"exact_match": 1 / 3}
    assert compute("exact_match", predictions, references, normalize=True) == {"exact_match": 2 / 3}


TAGS = (
    [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "I-ORG", "O"], ["B-PER", "O", "B-LOC", "I-LOC"]],
    [["B-PER", "I-PER", "O", "B-ORG"], ["O", "B-ORG", "I-ORG", "O"], ["B-PER", "I-PER", "B-LOC", "I-LOC"]],
)


def spans(sentences: list[list[str]]) -> set[tuple]:
    """(sentence, kind, start, end) of IOB2 tags that are well-formed."""
    found = set()
    for s, tags in enumerate(sentences):
        for start, tag in enumerate(tags):
            if tag.startswith("B-"):
                end = start + 1
                while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                    end += 1
                found.add((s, tag[2:], start, end))
    return found


@pytest.mark.parametrize("options", [{}, {"scheme": "IOB2", "mode": "strict"}])
def test_seqeval(options):
    predicted, right = map(spans, TAGS)
    scores = compute("seqeval", *TAGS, **options)
    assert scores["overall_precision"] == pytest.approx(len(predicted & right) / len(predicted))
    assert scores["overall_recall"] == pytest.approx(len(predicted & right) / len(right))
    assert scores["overall_f1"] == pytest.approx(2 * len(predicted & right) / (len(predicted) + len(right)))
    flat = [sum(side, []) for side in TAGS]
    assert scores["overall_accuracy"] == pytest.approx(np.mean([p == r for p, r in zip(*flat)]))
    persons = [{span for span in side if span[1] == "PER"} for side in (predicted, right)]
    hits = len(persons[0] & persons[1])
    precision, recall = hits / len(persons[0]), hits / len(persons[1])
    f1 = 2 * precision * recall / (precision + recall)
    assert scores["PER"] == pytest.approx({"precision": precision, "recall": recall, "f1": f1, "number": 2})


def test_seqeval_names_the_schemes():
    with pytest.raises(ValueError, match="scheme = 'BIO' is unknown; legal: IOB1"):
        compute("seqeval", *TAGS, scheme="BIO", mode="strict")


SENTENCES = ["the quick brown fox jumps over a lazy dog", "it is a guide to action which ensures that it obeys"]
REFERENCES = [
    ["a quick brown fox jumps over the lazy dog", "the fast brown fox jumps over the lazy dog"],
    ["it is a guide to action that ensures that it will for ever obey"],
]


def test_sacrebleu():
    words = [[r.split() for r in several] for several in REFERENCES]
    expected = nltk.translate.bleu_score.corpus_bleu(words, [s.split() for s in SENTENCES])
    result = compute("sacrebleu", SENTENCES, REFERENCES)
    assert result["score"] == pytest.approx(100 * expected, abs=1e-9)
    assert "tok:13a" in result["signature"]


def test_sacrebleu_tells_apart_lists_and_strings():
    single = [references[0] for references in REFERENCES]
    expected = compute("sacrebleu", SENTENCES, [[reference] for reference in single])["score"]
    assert compute("sacrebleu", SENTENCES, single)["score"] == expected


def test_chrf():
    sentence, reference = SENTENCES[0], REFERENCES[0][0]
    expected = nltk.translate.chrf_score.sentence_chrf(reference, sentence, min_len=1, max_len=6, beta=2.0)
    # NLTK takes the F-score of each order, sacrebleu the F-score of the mean precision and recall
    precision, recall = np.mean([ngram_rates(sentence, reference, n) for n in range(1, 7)], axis=0)
    by_hand = 5 * precision * recall / (4 * precision + recall)
    score = compute("chrf", [sentence], [reference])["score"]
    assert score == pytest.approx(100 * by_hand, abs=1e-9)
    assert score == pytest.approx(100 * expected, abs=1.0)


def ngram_rates(sentence: str, reference: str, n: int) -> tuple[float, float]:
    """Precision and recall of character n-grams without spaces."""
    texts = [text.replace(" ", "") for text in (sentence, reference)]
    counts = [collections.Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts]
    hits = (counts[0] & counts[1]).total()
    return hits / counts[0].total(), hits / counts[1].total()


def test_rouge():
    prediction, reference = "the cat sat on the mat today", "the cat was on the red mat"
    # 5 common words of 7 and 7; common pairs: "the cat", "on the", of 6 and 6; subsequence: the cat on the mat
    expected = {"rouge1": 5 / 7, "rouge2": 2 / 6, "rougeL": 5 / 7}
    assert compute("rouge", [prediction], [reference], rouge_types=list(expected)) == pytest.approx(expected)
    best = compute("rouge", [prediction], [["dogs bark", reference]], rouge_types=["rouge1"], use_aggregator=False)
    assert best == {"rouge1": [pytest.approx(5 / 7)]}


# (prediction, its no-answer probability, answers)
QUESTIONS = [
    ("the Norman conquest", 0.1, ["Norman Conquest", "conquest"]),
    ("in 1066 by William", 0.3, ["1066"]),
    ("France", 0.9, ["France", "in France"]),
    ("10th and 11th centuries", 0.2, ["10th and 11th centuries", "in the 10th and 11th centuries"]),
    ("", 0.8, ["Rollo"]),
    ("", 0.7, []),
    ("Viking leader", 0.4, []),
    ("Duke", 0.95, []),
]
# what the official evaluate-v2.0.py prints for QUESTIONS with --na-prob-thresh 0.85
OFFICIAL_V2 = {
    "exact": 50.0,
    "f1": 55.00000000000001,
    "total": 8,
    "HasAns_exact": 40.0,
    "HasAns_f1": 48.0,
    "HasAns_total": 5,
    "NoAns_exact": 66.66666666666667,
    "NoAns_f1": 66.66666666666667,
    "NoAns_total": 3,
    "best_exact": 62.5,
    "best_exact_thresh": 0.2,
    "best_f1": 67.5,
    "best_f1_thresh": 0.3,
}


def squad_case(questions):
    predictions = [
        {"id": str(i), "prediction_text": text, "no_answer_probability": p} for i, (text, p, _) in enumerate(questions)
    ]
    references = [
        {"id": str(i), "answers": {"text": answers, "answer_start": [0] * len(answers)}}
        for i, (*_, answers) in enumerate(questions)
    ]
    return predictions, references[::-1]


def test_squad_v2_gives_the_figures_of_the_official_script():
    assert compute("squad_v2", *squad_case(QUESTIONS), no_answer_threshold=0.85) == pytest.approx(OFFICIAL_V2)


def test_squad():
    predictions, references = squad_case(QUESTIONS[:5])
    predictions = [{"id": p["id"], "prediction_text": p["prediction_text"]} for p in predictions]
    # "in 1066 by william" has 1 of 4 words right: F1 = 2 * 1 / (4 + 1)
    expected = {"exact_match": 100 * 3 / 5, "f1": 100 * (3 + 2 / 5) / 5}
    assert compute("squad", predictions, references) == pytest.approx(expected)
