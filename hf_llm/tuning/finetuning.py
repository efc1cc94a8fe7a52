"""Fine-tuning a checkpoint on a labelled task, from a `FinetuneConfig` to a model or adapter with its report."""

from dataclasses import dataclass
from typing import Any

from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from hf_llm.data.encoding import check_offsets
from hf_llm.training.opening import open_config, open_tokenizer
from hf_llm.training.report import Results

from .examples import Encoder, check_columns, check_tokens, report_cut
from .job import DataSection, TuningConfig, TuningMixin, TuningRun, usage
from .task import Task
from .tasks import make_task


@dataclass(kw_only=True)
class LabelledData(DataSection):
    """
    Attributes:
        max_length: tokens of a text; default: what the model can read, at most 512.
    """

    max_length: int | None = None


@dataclass(kw_only=True)
class FinetuneConfig(TuningConfig):
    """A run of `recipes/finetune.py`.

    Attributes:
        task: `name` (of `tasks.TASKS`) and the task's options; a name alone will do.
        data: labelled examples.
    """

    task: Any
    data: LabelledData

    def __post_init__(self):
        super().__post_init__()
        make_task(self.task)


class FinetuneTrainer(TuningMixin, Trainer):
    pass


class Finetuning(TuningRun):
    """Fine-tunes, evaluates on the test split, saves and reports."""

    config_class = FinetuneConfig
    managed = {
        "remove_unused_columns": "features hold exactly what the model takes",
        "label_names": "the task decides what the labels are",
        "prediction_loss_only": "evaluation reports the task's figures",
        "eval_do_concat_batches": "the task's figures need all logits together",
        "include_for_metrics": "the task's figures need logits alone",
    }
    defaults = {**TuningRun.defaults, "remove_unused_columns": False, "learning_rate": 2e-5}

    def make_task(self) -> Task:
        return make_task(self.config.task)

    def make_arguments(self) -> TrainingArguments:
        self.task = self.make_task()
        return self.arguments(label_names=self.task.label_names)

    def prepare(self) -> Trainer:
        config, task = self.config, self.task
        model_config = open_config(config.model, task.auto_class)
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.data = config.data.load()
            check_columns(self.data, task.columns)
            fields = task.prepare(self.data)
            self.tokenizer = open_tokenizer(config.model, **task.tokenizer_options)
            if task.needs_offsets:
                check_offsets(self.tokenizer, f"task.name = {task.hub_name.replace('-', '_')!r}")
            self.encoder = Encoder.of(self.tokenizer, model_config, config.data.max_length)
            self.features = {split: task.encode(examples, self.encoder) for split, examples in self.data.items()}
        self.notes.append(f"Texts are read up to {self.encoder.max_length} tokens.")
        for split, features in self.features.items():
            for column in task.token_columns:
                check_tokens(features, split, column)
            self.notes += report_cut(features["cut"], split, self.encoder.max_length)
        inputs = {*self.tokenizer.model_input_names, *task.token_columns, *task.label_names}
        self.inputs = {
            split: features.select_columns([name for name in features.column_names if name in inputs])
            for split, features in self.features.items()
        }
        return self.make_trainer(self.make_model(fields))

    def make_model(self, fields: dict) -> PreTrainedModel:
        """The model, with the fields of its configuration that the data decide."""
        return self.open_model(self.task.auto_class, self.tokenizer, len(self.features["train"]), **fields)

    def make_trainer(self, model: PreTrainedModel, trainer_class: type = FinetuneTrainer, **options) -> Trainer:
        return trainer_class(
            model=model,
            args=self.args,
            data_collator=self.task.collate(self.encoder),
            train_dataset=self.inputs["train"],
            eval_dataset=self.inputs["validation"],
            processing_class=self.tokenizer,
            compute_metrics=self.compute_metrics,
            preprocess_logits_for_metrics=self.task.shrink,
            **options,
        )

    def compute_metrics(self, output: EvalPrediction) -> dict[str, float]:
        features, examples = self.features["validation"], self.data["validation"]
        return self.task.score(self.task.decode(output.predictions, features, examples))

    def predict(self, trainer: Trainer) -> list[dict]:
        """What a trainer's model makes of the test split, one record for each example."""
        trainer.compute_metrics = None
        logits = trainer.predict(self.inputs["test"]).predictions
        return self.task.decode(logits, self.features["test"], self.data["test"])

    def evaluate(self) -> Results:
        task, records = self.task, self.predict(self.trainer)
        self.write_records("predictions.jsonl", records)
        baselines = {
            name: task.score([{**record, task.predicts: guess} for record, guess in zip(records, guesses)])
            for name, guesses in task.baselines(self.data["train"], self.data["test"], records).items()
        }
        return self.results(
            task=task.hub_name,
            metrics=task.score(records),
            usage=usage(self.config, task.hub_name, task.auto_class),
            baselines=baselines,
            figures=task.figures(records),
            files={"predictions.jsonl": "what was predicted for each test example"},
        )
