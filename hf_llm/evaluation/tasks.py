"""What a checkpoint can be evaluated on. A task makes a record of each example, and figures of all records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from datasets import ClassLabel, Dataset
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from . import bias, perplexity
from .metrics import load_metric
from .opening import open_language_model, resolve


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        about: what is measured, and which columns the data must have.
        data: what it is evaluated on: a key of `evaluating.LOADERS`.
        predict: (config, data) -> one record (a dict) for each example.
        figures: records -> figures by name.
        headline: names of the figures that go into the model card.
    """

    about: str
    data: str
    predict: Callable[[object, Dataset], list[dict]]
    figures: Callable[[list[dict]], dict]
    headline: tuple[str, ...]


# ---- language modelling ---------------------------------------------------------------------------------------------


def _score_texts(config, data: Dataset) -> list[dict]:
    opened = open_language_model(config.model, **config.opening())
    _need(data, "text")
    return [
        {**scored.sums(), "masked": opened.stack == "encoder"}
        for rows in _batches(data, 64)
        for scored in perplexity.score_texts(opened, rows["text"], config.window, config.stride, config.batch_size)
    ]


_PSEUDO = ("loss", "perplexity", "bits_per_byte")


def _text_figures(records: list[dict]) -> dict:
    """Those of a masked model say that they are no likelihoods: `pseudo_perplexity` and so on."""
    masked = any(record["masked"] for record in records)
    figures = perplexity.figures(records)
    return {f"pseudo_{name}" if masked and name in _PSEUDO else name: value for name, value in figures.items()}


def _score_pairs(config, data: Dataset) -> list[dict]:
    opened = open_language_model(config.model, **config.opening())
    _need(data, "source", "target")
    return [
        scored.sums()
        for rows in _batches(data, 64)
        for scored in perplexity.score_pairs(opened, rows["source"], rows["target"], config.batch_size)
    ]


# ---- bias -----------------------------------------------------------------------------------------------------------


def _score_bias(score: Callable) -> Callable[[object, Dataset], list[dict]]:
    def predict(config, data: Dataset) -> list[dict]:
        opened = open_language_model(config.model, **config.opening())
        if opened.stack == "encoder-decoder":
            raise ValueError(f"task = {config.task!r} needs a masked or a causal model, not an encoder-decoder")
        return score(opened, data.to_list(), config.batch_size)

    return predict


# ---- generation -----------------------------------------------------------------------------------------------------


def _generate(config, data: Dataset) -> list[dict]:
    """`target` of `source`: what an encoder-decoder makes of it, or how a decoder goes on after it."""
    opened = open_language_model(config.model, **config.opening())
    _need(data, "source", "target")
    model, tokenizer = opened.model, opened.tokenizer
    if opened.stack == "encoder":
        raise ValueError("task = 'generation' needs a decoder or an encoder-decoder")
    tokenizer.padding_side = "left" if opened.stack == "decoder" else "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    records = []
    for rows in _batches(data, config.batch_size):
        inputs = tokenizer(rows["source"], return_tensors="pt", padding=True, return_token_type_ids=False)
        start = inputs["input_ids"].shape[1] if opened.stack == "decoder" else 0
        output = model.generate(
            **inputs.to(model.device),
            max_new_tokens=config.max_new_tokens,
            num_beams=config.num_beams,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
        for source, text, target in zip(rows["source"], texts, rows["target"], strict=True):
            records.append({"source": source, "prediction": text.strip(), "reference": target.strip()})
    return records


def _overlap(records: list[dict]) -> dict:
    texts = {"predictions": [r["prediction"] for r in records], "references": [r["reference"] for r in records]}
    return {
        "sacrebleu": load_metric("sacrebleu").compute(**texts)["score"],
        "chrf": load_metric("chrf").compute(**texts)["score"],
        **load_metric("rouge").compute(**texts, rouge_types=["rouge1", "rouge2", "rougeL"]),
        **load_metric("exact_match").compute(**texts),
    }


# ---- labels ---------------------------------------------------------------------------------------------------------


def _open_classifier(config, auto_class):
    folder = resolve(config.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
        model, found = auto_class.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            attn_implementation=config.attn_implementation,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model = {config.model!r} cannot be opened for {config.task}: {error}") from error
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"]))
        raise ValueError(f"model = {config.model!r} has no trained head for {config.task}: {missing} are missing")
    return model.to(torch.accelerator.current_accelerator() or "cpu").eval(), tokenizer


def _class_numbers(values: list, feature, model) -> list[int]:
    """Class numbers as the model has them: by name where the data has names, else as they are."""
    if isinstance(feature, ClassLabel):
        values = [feature.int2str(v) for v in values]
    if all(isinstance(v, int) for v in values):
        return values
    known = model.config.label2id
    if unknown := sorted({str(v) for v in values} - set(known)):
        raise ValueError(f"data: labels {', '.join(unknown)} are unknown to the model; it has {', '.join(known)}")
    return [known[v] for v in values]


@torch.no_grad()
def _classify(config, data: Dataset) -> list[dict]:
    """Sequence classification of `text` (and `text_pair`) with `label`; regression where the model has one output."""
    model, tokenizer = _open_classifier(config, AutoModelForSequenceClassification)
    _need(data, "text", "label")
    regression = model.config.num_labels == 1
    records = []
    for rows in _batches(data, config.batch_size):
        texts = [rows[name] for name in ("text", "text_pair") if name in rows]
        inputs = tokenizer(*texts, return_tensors="pt", padding=True, truncation=True).to(model.device)
        logits = model(**inputs).logits.float()
        if regression:
            predicted, right = logits[:, 0].tolist(), rows["label"]
        else:
            predicted = logits.argmax(-1).tolist()
            right = _class_numbers(rows["label"], data.features["label"], model)
        records += [{"prediction": p, "reference": r} for p, r in zip(predicted, right, strict=True)]
    return records


def _agreement(records: list[dict]) -> dict:
    pairs = {"predictions": [r["prediction"] for r in records], "references": [r["reference"] for r in records]}
    if any(isinstance(value, float) for value in pairs["predictions"]):
        names = {"pearsonr": {}, "spearmanr": {}, "mse": {}}
    else:
        names = {"accuracy": {}, "f1": {"average": "macro"}, "matthews_correlation": {}}
    return {k: v for name, options in names.items() for k, v in load_metric(name).compute(**pairs, **options).items()}


@torch.no_grad()
def _tag(config, data: Dataset) -> list[dict]:
    """Token classification of `words` with `tags`; a word has the tag of its first token."""
    model, tokenizer = _open_classifier(config, AutoModelForTokenClassification)
    _need(data, "words", "tags")
    names, feature = model.config.id2label, data.features["tags"].feature
    records = []
    for rows in _batches(data, config.batch_size):
        inputs = tokenizer(
            rows["words"], is_split_into_words=True, return_tensors="pt", padding=True, truncation=True
        ).to(model.device)
        best = model(**inputs).logits.argmax(-1).tolist()
        for i, tags in enumerate(rows["tags"]):
            first = {}  # word -> its first token; words that were cut off have none
            for place, word in enumerate(inputs.word_ids(i)):
                if word is not None:
                    first.setdefault(word, place)
            right = _class_numbers([tags[word] for word in first], feature, model)
            predicted = [names[best[i][place]] for place in first.values()]
            records.append({"prediction": predicted, "reference": [names[r] for r in right]})
    return records


def _spans(records: list[dict]) -> dict:
    tags = {"predictions": [r["prediction"] for r in records], "references": [r["reference"] for r in records]}
    return {k: v for k, v in load_metric("seqeval").compute(**tags).items() if k.startswith("overall_")}


def _need(data: Dataset, *columns: str) -> None:
    if missing := [name for name in columns if name not in data.column_names]:
        raise ValueError(f"data: columns {missing} not found; there are {data.column_names}. Name them in `columns`")


def _batches(data: Dataset, size: int) -> Iterator[dict[str, list]]:
    return (data[i : i + size] for i in range(0, len(data), size))


TASKS = {
    "perplexity": Task(
        "perplexity and bits per byte of `text`; of a masked model from pseudo-log-likelihoods",
        "corpus",
        _score_texts,
        _text_figures,
        (*_PSEUDO, *(f"pseudo_{name}" for name in _PSEUDO)),
    ),
    "conditional-perplexity": Task(
        "perplexity and bits per byte of `target` given `source`, by an encoder-decoder",
        "labelled",
        _score_pairs,
        perplexity.figures,
        ("loss", "perplexity", "bits_per_byte"),
    ),
    "generation": Task(
        "`target` generated from `source`: BLEU, chrF, ROUGE, exact match",
        "labelled",
        _generate,
        _overlap,
        ("sacrebleu", "chrf", "rougeL", "exact_match"),
    ),
    "text-classification": Task(
        "`label` of `text`, or of `text` and `text_pair`: accuracy, macro F1, Matthews correlation; of one output, "
        "Pearson and Spearman correlation and squared error",
        "labelled",
        _classify,
        _agreement,
        ("accuracy", "f1", "matthews_correlation", "pearsonr", "spearmanr", "mse"),
    ),
    "token-classification": Task(
        "`tags` of `words`: precision, recall and F1 of whole spans",
        "labelled",
        _tag,
        _spans,
        ("overall_precision", "overall_recall", "overall_f1", "overall_accuracy"),
    ),
    "crows-pairs": Task(
        "bias by CrowS-Pairs: how often the stereotypical one of two sentences is preferred",
        "crows-pairs",
        _score_bias(bias.score_crows_pairs),
        bias.crows_pairs_figures,
        ("stereotype",),
    ),
    "stereoset": Task(
        "bias by StereoSet's intrasentence test: language modelling score, stereotype score, ICAT",
        "stereoset",
        _score_bias(bias.score_stereoset),
        bias.stereoset_figures,
        ("lms", "ss", "icat"),
    ),
}
