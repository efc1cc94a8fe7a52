"""transformers' `TrainingArguments` with the optimizer (and, for pretraining, the schedule) chosen by name."""

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .optimizers import OPTIMIZERS


# name -> shape of the decay and the share of the run that it takes (None: `decay_fraction`). All are cases of
# transformers' warmup-stable-decay schedule. "1-sqrt" is the decay found best in https://arxiv.org/abs/2405.18392.
SCHEDULES = {
    "cosine": ("cosine", 1.0),
    "linear": ("linear", 1.0),
    "wsd": ("1-sqrt", None),
}

# TrainingArguments fields that a run's configuration does not set, and what it sets instead.
MANAGED_ARGUMENTS = {
    "output_dir": "use the top-level output_dir",
    "seed": "use the top-level seed",
    "data_seed": "use the top-level seed",
    "resume_from_checkpoint": "use the top-level resume",
    "optim": "use training.optimizer",
    "optim_args": "use training.optimizer and its settings",
    "lr_scheduler_type": "use training.schedule",
    "lr_scheduler_kwargs": "use training.schedule, training.decay_fraction and training.min_lr_ratio",
    "gradient_checkpointing": "use training.activation_checkpointing",
    "gradient_checkpointing_kwargs": "use training.activation_checkpointing_kwargs",
    "train_sampling_strategy": "sample n of a run is a pure function of the seed and n, so the order is fixed",
    "ignore_data_skip": "a resumed run always goes on with the next sample",
    "dataloader_in_order": "a resumed run always goes on with the next sample",
    "dataloader_drop_last": "every row of the validation split counts, and training has whole batches alone",
    "remove_unused_columns": "batches hold exactly what the model takes",
    "auto_find_batch_size": "the batch size decides which samples make a step",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C always save a checkpoint",
    "save_only_model": "a checkpoint always holds all that resuming needs",
    "save_on_each_node": "checkpoints belong on storage that all nodes share",
    "load_best_model_at_end": "the final model is the last one",
    "metric_for_best_model": "the final model is the last one",
    "greater_is_better": "the final model is the last one",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "include_num_input_tokens_seen": "real tokens are always counted",
    "prediction_loss_only": "evaluation reports loss, perplexity and bits per byte",
    "label_names": "the objective decides what the labels are",
    "do_train": "recipes/pretrain.py trains, evaluates and reports",
    "do_eval": "recipes/pretrain.py trains, evaluates and reports",
    "do_predict": "recipes/pretrain.py trains, evaluates and reports",
    "local_rank": "set by the launcher",
}


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless `value` of the field `training.<name>` is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"training.{name} = {value} is not between 0 and 1")


@dataclass
class OptimizerArguments:
    """What `build_optimizer` reads beside the fields of `TrainingArguments`; stands before it among the bases.

    Attributes:
        optimizer: "adamw", "muon" (hidden matrices and experts by Muon, the rest by AdamW) or "sgd".
        muon_learning_rate: learning rate of Muon's matrices; default: `learning_rate` (updates have AdamW's scale).
        momentum: of Muon and SGD.
        decay_embeddings: whether weight decay also holds for embeddings and the output head.
    """

    optimizer: str = "adamw"
    muon_learning_rate: float | None = None
    momentum: float = 0.95
    decay_embeddings: bool = False

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"training.optimizer = {self.optimizer!r} is unknown; legal: {', '.join(OPTIMIZERS)}")
        check_share("momentum", self.momentum)
        super().__post_init__()


@dataclass
class PretrainingArguments(OptimizerArguments, TrainingArguments):
    """Fields of `TrainingArguments`, with other defaults where pretraining wants them, and these of our own.

    Attributes:
        schedule: "cosine", "linear" or "wsd" (warmup, stable, decay), after `warmup_steps`.
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
    bf16: bool = False
    logging_steps: float = 10
    eval_strategy: str = "steps"
    save_total_limit: int | None = 2
    report_to: str | list[str] = "tensorboard"
    train_sampling_strategy: str = "sequential"
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool = False
    prediction_loss_only: bool = True
    label_names: list[str] = field(default_factory=lambda: ["labels"])

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"training.schedule = {self.schedule!r} is unknown; legal: {', '.join(SCHEDULES)}")
        check_share("decay_fraction", self.decay_fraction)
        check_share("min_lr_ratio", self.min_lr_ratio)
        if self.max_steps <= 0:
            raise ValueError(f"training.max_steps = {self.max_steps} must be positive")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # bf16 on a CPU must be asked for in transformers; here there is nothing else
        super().__post_init__()
        self._settle_batch_size()

        shape, share = SCHEDULES[self.schedule]
        after_warmup = self.max_steps - self.get_warmup_steps(self.max_steps)
        if after_warmup < 0:
            raise ValueError(
                f"training.warmup_steps = {self.warmup_steps} is more than training.max_steps = {self.max_steps}"
            )
        decay = after_warmup if share else min(after_warmup, math.ceil(self.decay_fraction * self.max_steps))
        self.lr_scheduler_type = "warmup_stable_decay"
        self.lr_scheduler_kwargs = {"num_decay_steps": decay, "decay_type": shape, "min_lr_ratio": self.min_lr_ratio}

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
