"""Fine-tuning a checkpoint on a labelled task, from a `FinetuneConfig` to a model or adapter with its report."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import peft
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.pipelines import PIPELINE_REGISTRY

from hf_llm.data.encoding import check_offsets
from hf_llm.data.tasks import SPLITS, TASKS, load_task, parse_task
from hf_llm.training.runs import run_directory, set_cpu_threads
from hf_llm.training.settings import build_section, suggestion

from .classification import Regression, SequenceClassification
from .config import TuningConfig, load_tuning_config, training_arguments
from .encoding import Encoder, check_tokens, report_cut
from .labels import check_columns
from .models import open_config, open_tokenizer
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .report import Results
from .running import TuningMixin, prepare_model, run
from .task import Task
from .tokens import TokenClassification


FINETUNING_TASKS: dict[str, type[Task]] = {
    "sequence_classification": SequenceClassification,
    "regression": Regression,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
}

# fields of TrainingArguments that follow from the task
MANAGED_BY_TASK = {
    "remove_unused_columns": "features hold exactly what the model takes",
    "label_names": "the task decides what the labels are",
    "prediction_loss_only": "evaluation reports the task's figures",
    "eval_do_concat_batches": "the task's figures need all logits together",
    "include_for_metrics": "the task's figures need logits alone",
}


@dataclass
class DataSection:
    """
    Attributes:
        dataset: what `hf_llm.data.tasks.load_task` takes: a name, a local file or glob, a Hub id, or a mapping with
            `columns` that renames them to those that the task reads.
        max_length: tokens of a text; default: what the model can read, at most 512.
        max_train_samples, max_validation_samples, max_test_samples: take that many examples of a split, drawn once.
    """

    dataset: Any
    max_length: int | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None


@dataclass(kw_only=True)
class FinetuneConfig(TuningConfig):
    """A run of `recipes/finetune.py`.

    Attributes:
        task: `name` (of `FINETUNING_TASKS`) and the task's options; a name alone will do.
    """

    task: Any
    data: DataSection


class FinetuneTrainer(TuningMixin, Trainer):
    pass


def load_finetune_config(path: str | Path, overrides: list[str] = ()) -> FinetuneConfig:
    """The run that a YAML file and `--section.field value` overrides describe. Raises ValueError on anything wrong."""
    config = load_tuning_config(FinetuneConfig, TrainingArguments, path, overrides, MANAGED_BY_TASK)
    make_task(config.task)
    return config


def make_task(section: str | dict, tasks: dict[str, type[Task]] = FINETUNING_TASKS) -> Task:
    """The task of a `task` section, one of `tasks`. Raises ValueError on an unknown name or option."""
    section = {"name": section} if isinstance(section, str) else section
    name = section.get("name") if isinstance(section, dict) else None
    if name not in tasks:
        raise ValueError(f"task.name = {name!r} is unknown{suggestion(str(name), tasks)}")
    return build_section(tasks[name], {k: v for k, v in section.items() if k != "name"}, "task")


def load_splits(section: DataSection, columns: tuple[str, ...]) -> dict[str, Dataset]:
    """Training, validation and test examples.

    Raises:
        ValueError: no such data, an empty split, missing columns.
    """
    data = {}
    for split in SPLITS:
        examples, most = load_task(section.dataset, split), getattr(section, f"max_{split}_samples")
        if most is not None and most < 1:
            raise ValueError(f"data.max_{split}_samples = {most} leaves nothing: it must be at least 1")
        data[split] = examples if most is None else examples.shuffle(seed=0).select(range(min(most, len(examples))))
    check_columns(data, columns)
    return data


def finetune(config: FinetuneConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Fine-tune, evaluate on the test split, save and report; go on from a checkpoint where there is one.

    Args:
        config: the run.
        card_template: Jinja template of the model card; None writes no card.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: anything wrong with configuration, data, checkpoint or adapter, before training starts.
    """
    set_cpu_threads(config.cpu_threads)
    task = make_task(config.task)
    args = training_arguments(
        config, TrainingArguments, remove_unused_columns=False, label_names=task.label_names, learning_rate=2e-5
    )
    with run_directory(args):
        return Finetuning(config, task, args).run(card_template)


class Finetuning:
    """The parts of one run, made in order: data, tokenizer, features, model, trainer."""

    def __init__(self, config: FinetuneConfig, task: Task, args: TrainingArguments):
        self.config, self.task, self.args = config, task, args
        model_config = open_config(config.model, task.auto_class)
        with args.main_process_first():  # the first process fills the caches that the others read
            self.data = load_splits(config.data, task.columns)
            fields = task.prepare(self.data)
            tokenizer = open_tokenizer(config.model, **task.tokenizer_options)
            if task.needs_offsets:
                check_offsets(tokenizer, f"task.name = {task.hub_name.replace('-', '_')!r}")
            self.encoder = Encoder.of(tokenizer, model_config, config.data.max_length)
            self.features = {split: task.encode(examples, self.encoder) for split, examples in self.data.items()}
            for split, features in self.features.items():
                check_tokens(features, split)
        self.notes = [report_cut(f["cut"], split, self.encoder.max_length) for split, f in self.features.items()]
        num_features = len(self.features["train"])
        model = self.make_model(tokenizer, num_features, fields)
        inputs = {*tokenizer.model_input_names, *task.label_names}
        self.inputs = {
            split: features.select_columns([name for name in features.column_names if name in inputs])
            for split, features in self.features.items()
        }
        self.trainer = self.make_trainer(
            model=model,
            args=args,
            data_collator=task.collator(self.encoder),
            train_dataset=self.inputs["train"],
            eval_dataset=self.inputs["validation"],
            processing_class=tokenizer,
            compute_metrics=self.compute_metrics,
            preprocess_logits_for_metrics=self.task.shrink,
        )

    def make_model(self, tokenizer: PreTrainedTokenizerBase, num_samples: int, fields: dict) -> PreTrainedModel:
        return prepare_model(self.config, self.task.auto_class, tokenizer, self.args, num_samples, **fields)

    def make_trainer(self, **parts) -> FinetuneTrainer:
        return FinetuneTrainer(**parts)

    def run(self, card_template: Path | None) -> signal.Signals | None:
        fingerprints = [examples._fingerprint for examples in self.features.values()]
        facts = {"fingerprint": fingerprints}
        return run(self.trainer, self.config, self.evaluate, card_template, facts)

    def compute_metrics(self, output: EvalPrediction) -> dict[str, float]:
        return self.task.score(self.records(output.predictions, "validation"))

    def records(self, logits, split: str) -> list[dict]:
        return self.task.decode(logits, self.features[split], self.data[split])

    def evaluate(self) -> Results:
        """Predict the test split, and write what was predicted."""
        self.trainer.compute_metrics = None
        logits = self.trainer.predict(self.inputs["test"]).predictions
        records = self.records(logits, "test")
        if self.args.should_save:
            with open(Path(self.config.output_dir, "predictions.jsonl"), "w", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False, default=_plain) + "\n" for record in records)
        made = self.task.baselines(self.data["train"], self.data["test"], records)
        return Results(
            task=self.task.hub_name,
            dataset=describe_dataset(self.config.data.dataset),
            metrics=self.task.score(records),
            rows={split: len(examples) for split, examples in self.data.items()},
            usage=usage(self.config, self.task),
            baselines={name: self.task.score(guessed) for name, guessed in made.items()},
            notes=[f"Texts are read up to {self.encoder.max_length} tokens.", *filter(None, self.notes)],
            figures=self.task.figures(records),
            files={"predictions.jsonl": "what was predicted for each test example"},
        )


def describe_dataset(spec: Any) -> str:
    """A data set in words; of an embedded one also where it comes from and its licence."""
    parsed = parse_task(spec)
    options = ", ".join(f"{k} {v}" for k, v in parsed.options.items())
    name = f"{parsed.name} ({options})" if options else parsed.name
    if parsed.name not in TASKS:
        return name
    task = TASKS[parsed.name]
    return f"{name}, {task.about} (from {task.source}, {task.licence})"


def usage(config: FinetuneConfig, task: Task) -> str:
    """Python code that opens the result."""
    name = Path(config.output_dir).name
    head = task.auto_class.__name__.removeprefix("AutoModel")
    if config.peft is not None:
        if hasattr(peft, f"AutoPeftModel{head}"):
            return f'from peft import AutoPeftModel{head}\n\nmodel = AutoPeftModel{head}.from_pretrained("{name}")'
        return (
            f"from peft import PeftConfig, PeftModel\nfrom transformers import AutoModel{head}\n\n"
            f'base = AutoModel{head}.from_pretrained(PeftConfig.from_pretrained("{name}").base_model_name_or_path)\n'
            f'model = PeftModel.from_pretrained(base, "{name}")'
        )
    if task.hub_name not in PIPELINE_REGISTRY.get_supported_tasks():
        return (
            f"from transformers import AutoModel{head}, AutoTokenizer\n\n"
            f'model = AutoModel{head}.from_pretrained("{name}", trust_remote_code=True)\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")'
        )
    return (
        f'from transformers import pipeline\n\nmodel = pipeline("{task.hub_name}", "{name}", trust_remote_code=True)'
    )


def _plain(value):
    """Numbers of numpy as Python's."""
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
