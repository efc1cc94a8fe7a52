"""Tasks with labels: what a checkpoint with a trained head predicts, one record for each example, and figures of them.

Texts are read, decoded and scored by the table of tasks by which such heads are fine-tuned.
"""

from collections.abc import Callable, Iterator

import torch
from datasets import Dataset

from hf_llm.data.encoding import check_offsets
from hf_llm.tuning.examples import Encoder, report_cut
from hf_llm.tuning.tasks import TASKS

from .opening import open_checkpoint


def need(data: Dataset, *columns: str) -> None:
    """Raise ValueError, with the columns that exist, unless the data has all of `columns`."""
    if missing := [name for name in columns if name not in data.column_names]:
        raise ValueError(f"data: columns {missing} not found; there are {data.column_names}. Name them in `columns`")


def batches(data: Dataset, size: int) -> Iterator[dict[str, list]]:
    """The data in order, `size` examples at a time: lists by column."""
    return (data[i : i + size] for i in range(0, len(data), size))


def predict(name: str) -> Callable[[object, Dataset], list[dict]]:
    """What the task `name` of `hf_llm.tuning.tasks.TASKS` predicts: (configuration, data) -> records.

    The function raises ValueError where the checkpoint has no trained head for the task, the data lacks a column or
    has a label that the head does not know, `config.window` is longer than the model reads, or the tokenizer does not
    tell which characters a token stands for, and that is needed.
    """

    @torch.no_grad()
    def records(config, data: Dataset) -> list[dict]:
        task = TASKS[name]()
        model, tokenizer = open_checkpoint(config.model, lambda _: task.auto_class, **config.opening())
        if name == "sequence_classification" and model.config.num_labels == 1:
            task = TASKS["regression"]()
        if task.needs_offsets:
            check_offsets(tokenizer, f"model = {config.model!r}: an {task.auto_class.__name__}")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        encoder = Encoder.of(tokenizer, model.config, config.window)
        if name == "question_answering":
            task.stride = encoder.max_length - config.stride if config.stride else min(128, encoder.max_length // 4)
        need(data, *task.columns)
        task.prepare({config.split: data}, model.config)
        features, collate = task.encode(data, encoder), task.collate(encoder)
        report_cut(features["cut"], config.split, encoder.max_length)
        names = sorted({*tokenizer.model_input_names, *task.label_names} & set(features.column_names))
        parts = []  # of the outputs, for each batch
        for rows in batches(features.select_columns(names), config.batch_size):
            batch = collate([dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)])
            inputs = {k: v.to(model.device) for k, v in batch.items() if k not in task.label_names}
            kept = task.shrink(tuple(out.float() for out in model(**inputs).to_tuple() if torch.is_tensor(out)), None)
            parts.append([part.cpu().numpy() for part in (kept if isinstance(kept, tuple) else (kept,))])
        outputs = [[row for batch in part for row in batch] for part in zip(*parts)]
        return task.decode(outputs if len(outputs) > 1 else outputs[0], features, data)

    return records


def agreement(records: list[dict]) -> dict:
    """Figures of classes, or of numbers."""
    name = "regression" if isinstance(records[0]["prediction"], float) else "sequence_classification"
    scores = TASKS[name]().score(records)
    return {name.removesuffix("_macro"): value for name, value in scores.items()}


def tag_agreement(records: list[dict]) -> dict:
    """Figures of whole spans, or of single words where the tags are not those of spans."""
    scores = TASKS["token_classification"]().score(records)
    prefix = "overall_" if "precision" in scores else ""
    return {prefix + name.removesuffix("_macro"): value for name, value in scores.items()}


def answer_figures(records: list[dict]) -> dict:
    """SQuAD's figures, those of its second version where some questions have no answer."""
    return TASKS["question_answering"]().score(records)


def choice_figures(records: list[dict]) -> dict:
    """The share of right choices."""
    return TASKS["multiple_choice"]().score(records)
