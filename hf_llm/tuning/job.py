"""What the jobs on a pretrained model share: configuration, splits, the model with its adapter, the trainer."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.pipelines import PIPELINE_REGISTRY

from hf_llm.data.tasks import SPLITS, load_task, parse_task
from hf_llm.data.tasks import TASKS as DATA_SETS
from hf_llm.training.config import RunConfig
from hf_llm.training.opening import ModelSection, is_complete_checkpoint, open_model
from hf_llm.training.report import Results
from hf_llm.training.run import Run
from hf_llm.training.trainer import RunTrainer

from .adapters import AllocateRanks, add_adapter, check_peft_section, open_quantised, orthogonality_weighed
from .examples import check_texts


BASE = "base"  # folder of a run with the model that its adapter is for, where no other checkpoint is that


@dataclass(kw_only=True)
class TuningConfig(RunConfig):
    """Base of the configurations of jobs on a pretrained model; each adds its `data` section and what else it needs.

    Attributes:
        model: the checkpoint to start from.
        peft: None to train all weights, or `method` and fields of that method's PEFT configuration (see `adapters`).
    """

    model: ModelSection
    peft: dict | None = None

    def __post_init__(self):
        if self.peft is not None:
            check_peft_section(self.peft)


@dataclass(kw_only=True)
class DataSection:
    """
    Attributes:
        dataset: what `hf_llm.data.tasks.load_task` takes: a name, a local file or glob, a Hub id, or a mapping with
            `columns` that renames them to those that the job reads.
        max_train_samples, max_validation_samples, max_test_samples: take that many examples of a split, drawn once.
    """

    dataset: Any
    sides: ClassVar[tuple[str, ...]] = ()  # fields that name columns of texts, which alone are given, by these names
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None

    def load(self) -> dict[str, Dataset]:
        """The examples of each split.

        Raises:
            ValueError: there are no examples, or a column of `sides` is missing or is not of texts.
        """
        return {split: self._load(split) for split in SPLITS}

    def _load(self, split: str) -> Dataset:
        examples, columns = load_task(self.dataset, split), {getattr(self, side): side for side in self.sides}
        for column, side in columns.items():
            if column not in examples.column_names:
                raise ValueError(
                    f"data.{side} = {column!r} is no column of the data; there are {examples.column_names}"
                )
            check_texts(examples, column, split)
        if columns:
            examples = examples.select_columns(list(columns)).rename_columns(columns)
        return self.take(examples, split)

    def take(self, examples: Dataset, split: str) -> Dataset:
        """As many examples of a split as the section wants."""
        count = getattr(self, f"max_{split}_samples")
        if count is None:
            return examples
        return examples.shuffle(seed=0).select(range(min(count, len(examples))))


class TuningMixin(RunTrainer):
    """`RunTrainer` of the jobs of this room: `class Mine(TuningMixin, SFTTrainer)`.

    Evaluation reads its examples in order, and PEFT's regularisation of AdaLoRA counts once for each step.
    """

    def evaluation_loop(self, *args, **kwargs):
        with orthogonality_weighed(self.model, 0.0):
            return super().evaluation_loop(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        parts = 1  # of the step, where losses are sums over its items
        if num_items_in_batch is not None:
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            parts = self.current_gradient_accumulation_steps * processes
        with orthogonality_weighed(self.model, 1 / parts):
            return super().training_step(model, inputs, num_items_in_batch)

    def _get_eval_sampler(self, eval_dataset):
        """In order, even where training groups by length: predictions belong to their examples by place."""
        if eval_dataset is None or self.args.world_size > 1:  # accelerate deals the rows out in order
            return None
        return SequentialSampler(eval_dataset)


class TuningRun(Run):
    """Base of the jobs: what `prepare`, `facts` and `evaluate` of each have in common.

    Attributes:
        data: the examples of each split.
        notes: sentences for the card, collected on the way.
    """

    config: TuningConfig
    data: dict[str, Dataset]
    defaults: ClassVar[dict[str, Any]] = {"eval_strategy": "epoch", "save_strategy": "epoch"}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.notes: list[str] = []

    def facts(self) -> dict[str, Any]:
        return {"fingerprint": [examples._fingerprint for examples in self.data.values()]}

    def open_model(
        self, auto_class: type, tokenizer: PreTrainedTokenizerBase, num_samples: int, **fields
    ) -> PreTrainedModel | PeftModel:
        """
        The model of the run, and its adapter if there is a `peft` section: see `opening.open_model` and `adapt`.

        Args:
            num_samples: of the training split, for methods that plan over the run.
        """
        set_seed(self.config.seed)
        model = open_model(self.config.model, auto_class, tokenizer, **fields)
        saved = self.config.peft is not None and is_complete_checkpoint(self.config.model, model)
        return self.adapt(model, tokenizer, num_samples, saved)

    def adapt(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_samples: int, saved: bool = False
    ) -> PreTrainedModel | PeftModel:
        """
        `model` with the adapter of the `peft` section, or as it is where there is none.

        An adapter names its base. Where the base is no checkpoint of exactly this model (it was imported, got a new
        head, or is a student), it is saved as `base` in the run's directory, so that the adapter opens there.

        Args:
            num_samples: as in `open_model`.
            saved: whether `model.name_or_path` opens as exactly this model.

        Raises:
            ValueError: an adapter is to be published, or whatever `add_adapter` refuses.
        """
        section = self.config.peft
        if section is None:
            return model
        if self.args.push_to_hub:
            raise ValueError(
                "training.push_to_hub = True needs a whole model, and peft trains an adapter: merge it when the run "
                "is done (`hf-llm merge`) and use `hf-llm publish`, or upload it with its own "
                "`push_to_hub`"
            )
        if not saved:
            base = Path(self.run_dir, BASE).resolve()
            if self.args.should_save:
                model.save_pretrained(base)
                tokenizer.save_pretrained(base)
            model.config._name_or_path = model.name_or_path = str(base)
        if section["method"] == "qlora":
            model = open_quantised(model)
        return add_adapter(model, section, training_steps(self.args, num_samples))

    def train(self):
        if self.config.peft is not None and self.config.peft["method"] == "adalora":
            self.trainer.add_callback(AllocateRanks())
        return super().train()

    def results(self, **parts) -> Results:
        """`Results` with data set, sizes of the splits and notes filled in."""
        parts.setdefault("rows", {split: len(examples) for split, examples in self.data.items()})
        notes = [*parts.pop("notes", ()), *self.notes]
        return Results(dataset=describe_dataset(self.config.data.dataset), notes=notes, **parts)

    def write_records(self, name: str, records: Iterable[dict]) -> None:
        """Write a file of JSON lines into the run's directory, on the main process."""
        if self.args.should_save:
            lines = (json.dumps(record, ensure_ascii=False, default=_plain) + "\n" for record in records)
            Path(self.run_dir, name).write_text("".join(lines), encoding="utf-8")


def training_steps(args: TrainingArguments, num_samples: int) -> int:
    """Optimizer steps of a run over `num_samples` samples."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(num_samples / (args.train_batch_size * args.world_size))
    return math.ceil(args.num_train_epochs * max(math.ceil(batches / args.gradient_accumulation_steps), 1))


def describe_dataset(spec: Any) -> str:
    """A data set in words; of an embedded one also where it comes from and its licence."""
    parsed = parse_task(spec)
    options = ", ".join(f"{k} {v}" for k, v in parsed.options.items())
    name = f"{parsed.name} ({options})" if options else parsed.name
    if parsed.name not in DATA_SETS:
        return name
    task = DATA_SETS[parsed.name]
    return f"{name}, {task.about} (from {task.source}, {task.licence})"


def usage(config: TuningConfig, task: str, auto_class: type, example: str | None = None) -> str:
    """Python code that opens the result of a run.

    Args:
        task: the Hub's name of it.
        example: code of a text to give a model that generates.
    """
    name, head = Path(config.output_dir).name, auto_class.__name__
    if config.peft is not None:
        lines = [
            f"from peft import PeftConfig, PeftModel\nfrom transformers import {head}\n",
            f'base = {head}.from_pretrained(PeftConfig.from_pretrained("{name}").base_model_name_or_path)',
            f'model = PeftModel.from_pretrained(base, "{name}")',
        ]
    elif task in PIPELINE_REGISTRY.get_supported_tasks():
        lines = ["from transformers import pipeline\n", f'pipe = pipeline("{task}", "{name}", trust_remote_code=True)']
        lines += [f'print(pipe({example}, return_full_text=False)[0]["generated_text"])'] if example else []
    else:
        lines = [
            f"from transformers import {head}, AutoTokenizer\n",
            f'model = {head}.from_pretrained("{name}", trust_remote_code=True)',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        ]
        lines += [f'output = model.generate(**tokenizer({example}, return_tensors="pt"))[0]'] if example else []
        lines += ["print(tokenizer.decode(output, skip_special_tokens=True))"] if example else []
    return "\n".join(lines)


def _plain(value):
    """Numbers of numpy as Python's."""
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
