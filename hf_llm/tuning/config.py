"""What the configurations of all tuning recipes have in common: the model, the adapter, the training arguments."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hf_llm.training.settings import build_section, check_training_fields, load_settings


# fields of a trainer's arguments that a recipe's configuration does not set, and what it sets instead
MANAGED_ARGUMENTS = {
    "output_dir": "use the top-level output_dir",
    "seed": "use the top-level seed",
    "data_seed": "use the top-level seed",
    "resume_from_checkpoint": "use the top-level resume",
    "ignore_data_skip": "a resumed run always goes on with the next sample",
    "auto_find_batch_size": "the batch size decides which samples make a step",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C always save a checkpoint",
    "save_only_model": "a checkpoint always holds all that resuming needs",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "do_train": "a recipe trains, evaluates and reports",
    "do_eval": "a recipe trains, evaluates and reports",
    "do_predict": "a recipe trains, evaluates and reports",
    "local_rank": "set by the launcher",
}

# what a tuning run starts from where its configuration says nothing
_DEFAULTS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "tensorboard",
    "bf16": False,
    "logging_nan_inf_filter": False,
}


@dataclass
class ModelSection:
    """The checkpoint that a run starts from.

    Attributes:
        path: folder or Hub id of one of ours or of a native architecture, which is imported; or a name of
            `hf_llm.data.checkpoints.CHECKPOINTS`.
        revision: of a Hub id.
        tokenizer: folder or Hub id of the tokenizer, if it is not beside the model.
        adapter: a PEFT adapter for this checkpoint that is merged into it first (an SFT adapter before DPO, say).
        dtype: of the weights while training.
        attn_implementation: backend of the attention; chosen by the model if None.
        fields: fields of the model's configuration to change (`classifier_dropout`, `classifier_pooling`, ...).
    """

    path: str
    revision: str | None = None
    tokenizer: str | None = None
    adapter: str | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    fields: dict = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(getattr(torch, str(self.dtype), None), torch.dtype):
            raise ValueError(f"model.dtype = {self.dtype!r} is no dtype; legal: float32, bfloat16, float16")


@dataclass(kw_only=True)
class TuningConfig:
    """Base of the recipes' configurations; each adds its `data` section and what else its job needs.

    Attributes:
        output_dir: checkpoints, TensorBoard logs, report and final model or adapter.
        model: the checkpoint to start from.
        training: fields of the trainer's arguments class.
        peft: None to train all weights, or `method` and fields of that method's PEFT configuration (see `adapters`).
        resume: "auto" goes on from the last good checkpoint in `output_dir`, "never" refuses to, or a checkpoint path.
        seed: of new weights, dropout and data order.
        cpu_threads: threads of a CPU run; default: all cores under `accelerate launch`.
    """

    output_dir: str
    model: ModelSection
    training: dict
    peft: dict | None = None
    resume: str = "auto"
    seed: int = 0
    cpu_threads: int | None = None

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def load_tuning_config(
    config_class: type[TuningConfig],
    arguments_class: type[TrainingArguments],
    path: str | Path,
    overrides: list[str] = (),
    managed: dict[str, str] | None = None,
) -> Any:
    """The run that a YAML file and `--section.field value` overrides describe, as a `config_class`.

    Args:
        managed: fields of `arguments_class` that this recipe sets by itself, beside `MANAGED_ARGUMENTS`, and how.

    Raises:
        ValueError: unreadable file, malformed override, unknown key, or value of the wrong type.
    """
    config = build_section(config_class, load_settings(path, overrides))
    check_training_fields(config.training, arguments_class, {**MANAGED_ARGUMENTS, **(managed or {})})
    if config.peft is not None:
        from .adapters import check_peft_section

        check_peft_section(config.peft)
    return config


def training_arguments(config: TuningConfig, arguments_class: type[TrainingArguments], **defaults) -> Any:
    """`arguments_class` of a run: its `training` section over `defaults`, which are over those of all tuning runs.

    Raises:
        ValueError: values that contradict each other.
    """
    settings = {**_DEFAULTS, **defaults, **config.training}
    if not torch.accelerator.is_available():
        settings["use_cpu"] = True  # bf16 on a CPU must be asked for in transformers; here there is nothing else
    try:
        return arguments_class(**settings, output_dir=config.output_dir, seed=config.seed)
    except ValueError as error:
        raise ValueError(f"training: {error}") from error
