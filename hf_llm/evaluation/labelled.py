"""Tasks with labels: what a checkpoint with a trained head predicts, one record for each example, and figures of them.

Texts are read, and answers and choices scored, by the code that fine-tunes such heads.
"""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from hf_llm.data.encoding import check_offsets
from hf_llm.tuning.encoding import Encoder, report_cut
from hf_llm.tuning.multiple_choice import MultipleChoice
from hf_llm.tuning.question_answering import QuestionAnswering
from hf_llm.tuning.task import Task

from .answers import are_spans
from .metrics import load_metric
from .opening import open_checkpoint


def need(data: Dataset, *columns: str) -> None:
    """Raise ValueError, with the columns that exist, unless the data has all of `columns`."""
    if missing := [name for name in columns if name not in data.column_names]:
        raise ValueError(f"data: columns {missing} not found; there are {data.column_names}. Name them in `columns`")


def batches(data: Dataset, size: int) -> Iterator[dict[str, list]]:
    """The data in order, `size` examples at a time: lists by column."""
    return (data[i : i + size] for i in range(0, len(data), size))


def _open_head(config, auto_class: type, needs_offsets: bool = False) -> tuple[PreTrainedModel, Encoder]:
    """A model with a trained head, and what encodes its texts.

    Raises:
        ValueError: there is none, it has no such head, `config.window` is longer than it can read, or the tokenizer
            does not tell which characters a token stands for, and that is needed.
    """
    model, tokenizer = open_checkpoint(config.model, lambda _: auto_class, **config.opening())
    if needs_offsets:
        check_offsets(tokenizer, f"model = {config.model!r}: an {auto_class.__name__}")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, Encoder.of(tokenizer, model.config, config.window)


def _class_numbers(values: list, feature, model) -> list[int]:
    """Class numbers as the model has them: by name where the data has names, else as they are."""
    if isinstance(feature, ClassLabel):
        values = [feature.int2str(v) for v in values]
    if all(isinstance(v, int) for v in values):
        if wrong := [v for v in values if v not in range(model.config.num_labels)]:
            raise ValueError(
                f"data: label {wrong[0]} is unknown to the model; it has 0 to {model.config.num_labels - 1}"
            )
        return values
    known = model.config.label2id
    if unknown := sorted({str(v) for v in values} - set(known)):
        raise ValueError(f"data: labels {', '.join(unknown)} are unknown to the model; it has {', '.join(known)}")
    return [known[v] for v in values]


@torch.no_grad()
def classify(config, data: Dataset) -> list[dict]:
    """Sequence classification of `text` (and `text_pair`) with `label`; regression where the model has one output."""
    model, encoder = _open_head(config, AutoModelForSequenceClassification)
    need(data, "text", "label")
    regression = model.config.num_labels == 1
    records, cut = [], []
    for rows in batches(data, config.batch_size):
        texts = [rows[name] for name in ("text", "text_pair") if name in rows]
        encoded = encoder(*texts)
        cut += encoder.was_cut(encoded, *texts)
        logits = model(**encoder.tokenizer.pad(encoded, return_tensors="pt").to(model.device)).logits.float()
        if regression:
            predicted, right = logits[:, 0].tolist(), rows["label"]
        else:
            predicted = logits.argmax(-1).tolist()
            right = _class_numbers(rows["label"], data.features["label"], model)
        records += [{"prediction": p, "reference": r} for p, r in zip(predicted, right, strict=True)]
    report_cut(cut, config.split, encoder.max_length)
    return records


def agreement(records: list[dict]) -> dict:
    """Figures of classes, or of numbers."""
    pairs = {"predictions": [r["prediction"] for r in records], "references": [r["reference"] for r in records]}
    if any(isinstance(value, float) for value in pairs["predictions"]):
        names = {"pearsonr": {}, "spearmanr": {}, "mse": {}}
    else:
        names = {"accuracy": {}, "f1": {"average": "macro"}, "matthews_correlation": {}}
    return {k: v for name, options in names.items() for k, v in load_metric(name).compute(**pairs, **options).items()}


@torch.no_grad()
def tag(config, data: Dataset) -> list[dict]:
    """Token classification of `words` with `tags`; a word has the tag of its first token."""
    model, encoder = _open_head(config, AutoModelForTokenClassification, needs_offsets=True)
    need(data, "words", "tags")
    names, feature = model.config.id2label, data.features["tags"].feature
    records, cut = [], []
    for rows in batches(data, config.batch_size):
        encoded = encoder(rows["words"], is_split_into_words=True)
        cut += encoder.was_cut(encoded)
        inputs = encoder.tokenizer.pad(encoded, return_tensors="pt").to(model.device)
        best = model(**inputs).logits.argmax(-1).tolist()
        for i, tags in enumerate(rows["tags"]):
            first = {}  # word -> its first token; words that were cut off have none
            for place, word in enumerate(encoded.word_ids(i)):
                if word is not None:
                    first.setdefault(word, place)
            right = _class_numbers([tags[word] for word in first], feature, model)
            predicted = [names[best[i][place]] for place in first.values()]
            records.append({"prediction": predicted, "reference": [names[r] for r in right]})
    report_cut(cut, config.split, encoder.max_length)
    return records


def tag_agreement(records: list[dict]) -> dict:
    """Figures of whole spans, or of single words where the tags are not those of spans."""
    tags = {"predictions": [r["prediction"] for r in records], "references": [r["reference"] for r in records]}
    names = sorted({tag for rows in tags.values() for row in rows for tag in row})
    if are_spans(names):
        return {k: v for k, v in load_metric("seqeval").compute(**tags).items() if k.startswith("overall_")}
    pairs = {side: [names.index(tag) for row in rows for tag in row] for side, rows in tags.items()}
    return {**load_metric("accuracy").compute(**pairs), **load_metric("f1").compute(**pairs, average="macro")}


@torch.no_grad()
def _outputs(config, data: Dataset, task: Task, model: PreTrainedModel, encoder: Encoder) -> tuple[Dataset, list]:
    """Features of the data, as a task of fine-tuning makes them, and the model's outputs for batches of them."""
    need(data, *task.columns)
    task.prepare({config.split: data})
    features, collate = task.encode(data, encoder), task.collator(encoder)
    report_cut(features["cut"], config.split, encoder.max_length)
    names = {*encoder.tokenizer.model_input_names, *task.label_names} & set(features.column_names)
    outputs = []
    for rows in batches(features.select_columns(sorted(names)), config.batch_size):
        batch = collate([dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)])
        outputs.append(model(**{k: v.to(model.device) for k, v in batch.items() if k not in task.label_names}))
    return features, outputs


def answer(config, data: Dataset) -> list[dict]:
    """Extractive answers to `question` in `context`, read in overlapping windows."""
    model, encoder = _open_head(config, AutoModelForQuestionAnswering, needs_offsets=True)
    shared = encoder.max_length - config.stride if config.stride else min(128, encoder.max_length // 4)
    task = QuestionAnswering(stride=shared)
    features, outputs = _outputs(config, data, task, model, encoder)
    ends = ("start_logits", "end_logits")
    logits = [[row for out in outputs for row in out[name].float().cpu().numpy()] for name in ends]
    return task.decode(logits, features, data)


def answer_figures(records: list[dict]) -> dict:
    """SQuAD's figures, those of its second version where some questions have no answer."""
    task = QuestionAnswering()
    task.has_null = any(not record["answers"]["text"] for record in records)
    return task.score(records)


def choose(config, data: Dataset) -> list[dict]:
    """Which of `choices` answers `question`."""
    model, encoder = _open_head(config, AutoModelForMultipleChoice)
    task = MultipleChoice()
    features, outputs = _outputs(config, data, task, model, encoder)
    return task.decode(np.concatenate([out.logits.float().cpu().numpy() for out in outputs]), features, data)


def choice_figures(records: list[dict]) -> dict:
    """The share of right choices."""
    return MultipleChoice().score(records)
