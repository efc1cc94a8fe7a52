"""What a checkpoint can be evaluated on. A task makes a record of each example, and figures of all records."""

from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset

from hf_llm.data import load_corpus
from hf_llm.data.tasks import load_task
from hf_llm.metrics import METRICS

from . import bias, labelled, perplexity
from .labelled import batches, need
from .opening import open_language_model


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        about: what is measured, and which columns the data must have.
        load: config -> what it is evaluated on.
        predict: (config, data) -> one record (a dict) for each example.
        figures: records -> figures by name.
        headline: names of the figures that go into the model card.
    """

    about: str
    load: Callable[[object], Dataset]
    predict: Callable[[object, Dataset], list[dict]]
    figures: Callable[[list[dict]], dict]
    headline: tuple[str, ...]


def _corpus(config) -> Dataset:
    columns = {"text_column": config.columns["text"]} if "text" in config.columns else {}
    spec = {"name": config.data, **columns} if isinstance(config.data, str) else config.data
    return load_corpus(spec, config.split, held_out_fraction=config.held_out_fraction)


def _labelled(config) -> Dataset:
    spec = {"name": config.data} if isinstance(config.data, str) else dict(config.data)
    return load_task({**spec, "columns": {**spec.get("columns", {}), **config.columns}}, config.split)


def _probe(config) -> Dataset:
    return bias.load_probe(config.task, config.data)


# ---- language modelling ---------------------------------------------------------------------------------------------


def _score_texts(config, data: Dataset) -> list[dict]:
    opened = open_language_model(config.model, **config.opening())
    need(data, "text")
    return [
        {**scored.sums(), "masked": opened.stack == "encoder"}
        for rows in batches(data, 64)
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
    need(data, "source", "target")
    return [
        scored.sums()
        for rows in batches(data, 64)
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
    need(data, "source", "target")
    model, tokenizer = opened.model, opened.tokenizer
    if opened.stack == "encoder":
        raise ValueError("task = 'generation' needs a decoder or an encoder-decoder")
    tokenizer.padding_side = "left" if opened.stack == "decoder" else "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    records = []
    for rows in batches(data, config.batch_size):
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
        "sacrebleu": METRICS["sacrebleu"](**texts)["score"],
        "chrf": METRICS["chrf"](**texts)["score"],
        **METRICS["rouge"](**texts, rouge_types=["rouge1", "rouge2", "rougeL"]),
        **METRICS["exact_match"](**texts),
    }


TASKS = {
    "perplexity": Task(
        "perplexity and bits per byte of `text`; of a masked model from pseudo-log-likelihoods",
        _corpus,
        _score_texts,
        _text_figures,
        (*_PSEUDO, *(f"pseudo_{name}" for name in _PSEUDO)),
    ),
    "conditional-perplexity": Task(
        "perplexity and bits per byte of `target` given `source`, by an encoder-decoder",
        _labelled,
        _score_pairs,
        perplexity.figures,
        ("loss", "perplexity", "bits_per_byte"),
    ),
    "generation": Task(
        "`target` generated from `source`: BLEU, chrF, ROUGE, exact match",
        _labelled,
        _generate,
        _overlap,
        ("sacrebleu", "chrf", "rougeL", "exact_match"),
    ),
    "text-classification": Task(
        "`label` of `text`, or of `text` and `text_pair`: accuracy, macro F1, Matthews correlation; of one output, "
        "Pearson and Spearman correlation and squared error",
        _labelled,
        labelled.predict("sequence_classification"),
        labelled.agreement,
        ("accuracy", "f1", "matthews_correlation", "pearsonr", "spearmanr", "mse"),
    ),
    "token-classification": Task(
        "`tags` of `words`: precision, recall and F1 of whole spans; accuracy and macro F1 of tags that are none",
        _labelled,
        labelled.predict("token_classification"),
        labelled.tag_agreement,
        ("overall_precision", "overall_recall", "overall_f1", "overall_accuracy", "accuracy", "f1"),
    ),
    "question-answering": Task(
        "where in `context` the answer to `question` stands (`answers`, as SQuAD has them): exact match and F1",
        _labelled,
        labelled.predict("question_answering"),
        labelled.answer_figures,
        ("exact_match", "f1"),
    ),
    "multiple-choice": Task(
        "which of `choices` answers `question` (`label`): accuracy",
        _labelled,
        labelled.predict("multiple_choice"),
        labelled.choice_figures,
        ("accuracy",),
    ),
    "crows-pairs": Task(
        "bias by CrowS-Pairs: how often the stereotypical one of two sentences is preferred",
        _probe,
        _score_bias(bias.score_crows_pairs),
        bias.crows_pairs_figures,
        ("stereotype",),
    ),
    "stereoset": Task(
        "bias by StereoSet's intrasentence test: language modelling score, stereotype score, ICAT",
        _probe,
        _score_bias(bias.score_stereoset),
        bias.stereoset_figures,
        ("lms", "ss", "icat"),
    ),
}
