"""What all runs on preferences and rewards share: their arguments, tokenizer, adapters and curves."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hf_llm.tuning.config import TuningConfig, training_arguments
from hf_llm.tuning.conversations import check_calls, is_conversation
from hf_llm.tuning.models import open_tokenizer, text_limit
from hf_llm.tuning.running import TuningMixin
from hf_llm.tuning.sft_data import set_chat_template

from .rollout import ShufflesByEpoch


# fields of TRL's arguments that a run's configuration does not set, and what it sets instead
MANAGED = {
    "model_init_kwargs": "use the section model",
    "trust_remote_code": "hf_llm's own classes open the model",
    "chat_template_path": "use data.chat_template",
    "eos_token": "the tokenizer has it",
    "pad_token": "the tokenizer has it",
    "reward_weights": "use the weight of each of rewards",
    "use_liger_kernel": "TRL's fused head is used already",
    "precompute_ref_log_probs": "the reference is there throughout: a copy, or the model without its adapter",
    "gradient_checkpointing": "use training.activation_checkpointing",
    "gradient_checkpointing_kwargs": "use training.activation_checkpointing_kwargs",
    "remove_unused_columns": "the trainer knows which columns it needs",
}
# (heading, keys of the log) of a row of curves
Panels = tuple[tuple[str, tuple[str, ...]], ...]


class AlignmentMixin(ShufflesByEpoch, TuningMixin):
    """`TuningMixin` for TRL's trainers.

    Attributes:
        prepared: fingerprint of each data set -> its token ids, of which trainers of preferences leave out some
            examples, and cut others as they collate them.
    """

    def __init__(self, *args, **kwargs):
        self.prepared: dict[str, Dataset] = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        prepared = self.prepared[dataset._fingerprint] = super()._prepare_dataset(dataset, *args, **kwargs)
        return prepared

    def create_model_card(self, *args, **kwargs) -> None:
        """None of TRL's: the run writes a card from its own figures."""

    def _get_eval_sampler(self, eval_dataset):
        """The trainer's own, which repeats a prompt where several completions of it are compared."""
        return super(TuningMixin, self)._get_eval_sampler(eval_dataset)


def make_arguments(config: TuningConfig, arguments_class: type[TrainingArguments], **defaults) -> Any:
    """The run's arguments. Of TRL's defaults, recomputed activations are left to accelerators, which lack memory."""
    defaults = {"activation_checkpointing": torch.accelerator.is_available(), **defaults}
    return training_arguments(config, arguments_class, **defaults)


def settle_max_length(
    config: TuningConfig, args: Any, model_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Bring `args.max_length` to what the model can read, where the configuration does not say it.

    Raises:
        ValueError: it says more.
    """
    limit = text_limit(model_config, tokenizer)
    if limit is None or (args.max_length is not None and args.max_length <= limit):
        return
    if "max_length" in config.training:
        raise ValueError(f"training.max_length = {args.max_length}, but the model reads {limit} tokens at most")
    args.max_length = limit


def open_text_tokenizer(
    config: TuningConfig, data: dict[str, Dataset], needs_end: bool = True
) -> PreTrainedTokenizerBase:
    """
    The run's tokenizer, with a chat template where the texts are conversations.

    Args:
        data: the splits; the first text of the training split tells which it is.
        needs_end: whether there must be an end token.

    Raises:
        ValueError: no tokenizer, no pad or end token, no chat template, or one that does not write calls of tools.
    """
    tokenizer = open_tokenizer(config.model)
    if needs_end and tokenizer.eos_token_id is None:
        raise ValueError("model: the tokenizer has no end token (eos_token), and completions must end: set one")
    first = data["train"][0]
    columns = [name for name in ("prompt", "completion", "chosen", "rejected") if is_conversation(first.get(name))]
    if columns:
        set_chat_template(tokenizer, config.data.chat_template, assistant_only=False)
        for split, texts in data.items():
            check_calls(texts, columns, split, tokenizer)
    return tokenizer


def peel_adapter(model: PreTrainedModel | PeftModel) -> tuple[PreTrainedModel, PeftConfig | None]:
    """A new adapter's base and configuration, for trainers of TRL that add adapters by themselves: of a `PeftModel`
    they keep a frozen second adapter, whose folder in a checkpoint would stand in for the trained one on resuming."""
    if not isinstance(model, PeftModel):
        return model, None
    peft_config = model.active_peft_config
    return (model.get_base_model() if peft_config.is_prompt_learning else model.unload()), peft_config


def draw_history(panels: Panels, history: list[dict]) -> Callable:
    """A function that draws figures of a log over optimizer steps, on training and on validation data."""

    def draw(figure) -> None:
        known = [(name, keys) for name, keys in panels if any(_points(history, k) for k in _both(keys))]
        figure.set_size_inches(8, 2.2 * max(len(known), 1))
        for axes, (name, keys) in zip(figure.subplots(len(known), sharex=True, squeeze=False)[:, 0], known):
            for key in _both(keys):
                if points := _points(history, key):
                    held_out = key.startswith("eval_")
                    label = f"{key.removeprefix('eval_')}, {'validation' if held_out else 'training'}"
                    axes.plot(*zip(*points), "o-" if held_out else "-", linewidth=1.5, markersize=3.5, label=label)
            axes.set_ylabel(name, fontsize="small")
            axes.grid(alpha=0.25)
            axes.spines[["right", "top"]].set_visible(False)
            axes.legend(frameon=False, fontsize="small")
            axes.set_xlabel("optimizer step" if name == known[-1][0] else "")

    return draw


def _both(keys: tuple[str, ...]) -> list[str]:
    return [name for key in keys for name in (key, f"eval_{key}")]


def _points(history: list[dict], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
