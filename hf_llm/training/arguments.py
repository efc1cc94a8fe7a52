"""transformers' `TrainingArguments` in a run: what the run sets by itself, and optimizer and schedule by name."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from .optimizers import OPTIMIZERS, SCHEDULES


# fields of a trainer's arguments that no run's configuration sets, and what sets them instead; a job adds its own
MANAGED = {
    "output_dir": "use the top-level output_dir",
    **dict.fromkeys(("seed", "data_seed"), "use the top-level seed"),
    "resume_from_checkpoint": "use the top-level resume",
    "ignore_data_skip": "a resumed run always goes on with the next sample",
    "auto_find_batch_size": "the batch size decides which samples make a step",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C always save a checkpoint",
    "save_only_model": "a checkpoint always holds all that resuming needs",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "a recipe trains, evaluates and reports"),
    "local_rank": "set by the launcher",
}
MANAGED_BY_OPTIMIZER = {
    "optim": "use training.optimizer",
    "optim_args": "use training.optimizer and its settings",
}
MANAGED_IN_PRETRAINING = {
    **MANAGED_BY_OPTIMIZER,
    "lr_scheduler_type": "use training.schedule",
    "lr_scheduler_kwargs": "use training.schedule, training.decay_fraction and training.min_lr_ratio",
    "gradient_checkpointing": "use training.activation_checkpointing",
    "gradient_checkpointing_kwargs": "use training.activation_checkpointing_kwargs",
    "train_sampling_strategy": "sample n of a run is a pure function of the seed and n, so the order is fixed",
    "dataloader_in_order": "a resumed run always goes on with the next sample",
    "dataloader_drop_last": "every row of the validation split counts, and training has whole batches alone",
    "remove_unused_columns": "batches hold exactly what the model takes",
    "save_on_each_node": "checkpoints belong on storage that all nodes share",
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "the final model is the last one"
    ),
    "include_num_input_tokens_seen": "real tokens are always counted",
    "prediction_loss_only": "evaluation reports loss, perplexity and bits per byte",
    "label_names": "the objective decides what the labels are",
}
# what every run starts from where its configuration says nothing
DEFAULTS = {
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "tensorboard",
    "bf16": False,
    "logging_nan_inf_filter": False,
}


def check_trackers(names: list[str]) -> None:
    """Raise ValueError unless every name of `training.report_to` is a tracker that transformers knows and finds."""
    for name in names:
        check_choice("report_to", name, INTEGRATION_TO_CALLBACK)
        if name not in get_available_reporting_integrations():
            raise ValueError(f"training.report_to = {name!r} needs its package: pip install {name}")


def check_choice(name: str, value: str, legal: Iterable[str]) -> None:
    """Raise ValueError unless `value` of the field `training.<name>` is in `legal`."""
    if value not in legal:
        raise ValueError(f"training.{name} = {value!r} is unknown; legal: {', '.join(legal)}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless `value` of the field `training.<name>` is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"training.{name} = {value} is not between 0 and 1")


@dataclass
class OptimizerArguments:
    """What `build_optimizer` reads beside the fields of `TrainingArguments`; stands before it among the bases.

    Attributes:
        optimizer: a key of `OPTIMIZERS`: "adamw", "muon" (hidden matrices and experts by Muon, the rest by AdamW),
            "sgd".
        muon_learning_rate: learning rate of Muon's matrices; default: `learning_rate` (updates have AdamW's scale).
        momentum: of Muon and SGD.
        decay_embeddings: whether weight decay also holds for embeddings and the output head.
    """

    optimizer: str = "adamw"
    muon_learning_rate: float | None = None
    momentum: float = 0.95
    decay_embeddings: bool = False

    def __post_init__(self):
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_share("momentum", self.momentum)
        super().__post_init__()


@dataclass
class PretrainingArguments(OptimizerArguments, TrainingArguments):
    """Fields of `TrainingArguments`, with other defaults where pretraining wants them, and these of our own.

    Attributes:
        schedule: a key of `SCHEDULES`: "cosine", "linear" or "wsd" (warmup, stable, decay), after `warmup_steps`.
        decay_fraction: share of the run that the decay of "wsd" takes.
        min_lr_ratio: learning rate at the end, as a share of the peak.
        global_batch_size: rows per optimizer step over all processes; decides `gradient_accumulation_steps`, so that
            a run means the same on any number of processes. Default: what batch size, accumulation and processes give.
    """

    global_batch_size: int | None = None
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    min_lr_ratio: float = 0.0

    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    eval_strategy: str = "steps"
    train_sampling_strategy: str = "sequential"
    remove_unused_columns: bool = False
    prediction_loss_only: bool = True
    label_names: list[str] = field(default_factory=lambda: ["labels"])

    def __post_init__(self):
        check_choice("schedule", self.schedule, SCHEDULES)
        check_share("decay_fraction", self.decay_fraction)
        check_share("min_lr_ratio", self.min_lr_ratio)
        if self.max_steps <= 0:
            raise ValueError(f"training.max_steps = {self.max_steps} must be positive")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # bf16 on a CPU must be asked for in transformers; here there is nothing else
        super().__post_init__()
        self._settle_batch_size()
        if self.get_warmup_steps(self.max_steps) > self.max_steps:
            raise ValueError(
                f"training.warmup_steps = {self.warmup_steps} is more than training.max_steps = {self.max_steps}"
            )

    def _settle_batch_size(self) -> None:
        at_once = self.per_device_train_batch_size * self.world_size
        if self.global_batch_size is None:
            self.global_batch_size = at_once * self.gradient_accumulation_steps
        if self.global_batch_size <= 0 or self.global_batch_size % at_once:
            raise ValueError(
                f"training.global_batch_size = {self.global_batch_size} is not a multiple of {at_once}, which is "
                f"training.per_device_train_batch_size = {self.per_device_train_batch_size} x {self.world_size} "
                "launched process(es)"
            )
        steps = self.global_batch_size // at_once
        if self.gradient_accumulation_steps not in (1, steps):
            raise ValueError(
                f"training.gradient_accumulation_steps = {self.gradient_accumulation_steps} contradicts "
                f"training.global_batch_size = {self.global_batch_size}, which needs {steps}; leave one of them out"
            )
        self.gradient_accumulation_steps = steps
