"""The `rewards` of a run: reward models and reward functions, with their weights.

rewards:
  - {model: outputs/reward-sentiment}
  - {function: length, options: {target: 20}, weight: 0.1}
  - {function: my_package.rewards:politeness}
"""

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.data.checkpoints import checkpoint_path

from .reward_functions import make_reward_function
from .rewards import load_reward_model, resolve_rewards


@dataclass
class RewardSection:
    """
    Attributes:
        model: folder or Hub id of a reward model (sequence classification with one label): ours, native,
            or an adapter.
        tokenizer: of the reward model, if it is not beside it; it need not be the policy's.
        function: a name of `hf_llm.rlhf.reward_functions.REWARD_FUNCTIONS`, or `module:function`.
        options: of the function.
        weight: in the sum of all rewards.
    """

    model: str | None = None
    tokenizer: str | None = None
    function: str | None = None
    options: dict = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self):
        if (self.model is None) == (self.function is None):
            raise ValueError("rewards: each has either a model or a function")
        if self.function is None and self.options:
            raise ValueError(f"rewards: options {self.options} are for functions, and {self.model} is a model")
        if self.function is not None and self.tokenizer is not None:
            raise ValueError(f"rewards: a tokenizer is for models, and {self.function} is a function")


@dataclass
class Rewards:
    """
    Attributes:
        raw: models and functions.
        tokenizers: of the models, None for functions.
        functions: all as checked functions; models read their texts as they were trained to.
        notes: sentences for the card.
    """

    raw: list[PreTrainedModel | Callable]
    tokenizers: list[PreTrainedTokenizerBase | None]
    functions: list[Callable]
    notes: list[str]

    def score(self, prompts: list, completions: list, rows: Dataset, state: Any) -> dict[str, list[float | None]]:
        """What each reward gives to completions, by its name; `rows` are those of the prompts."""
        ignored = {"completion_ids": None, "trainer_state": state}
        ignored |= {"log_extra": lambda *_: None, "log_metric": lambda *_: None}
        columns = {name: rows[name][:] for name in rows.column_names if name != "prompt"}
        given = {}
        for function in self.functions:
            values = function(prompts=prompts, completions=completions, **columns, **ignored)
            given[function.__name__] = asyncio.run(values) if inspect.iscoroutine(values) else values
        return given


def open_rewards(sections: list[RewardSection], columns: list[str], args: Any) -> Rewards:
    """
    What a run's `rewards` name.

    Args:
        columns: of the data set, which functions compare with.
        args: says micro-batch and device of the models.

    Raises:
        ValueError: no such model or function, a model with several labels, a column that is missing.
    """
    raw, tokenizers, notes = [], [], []
    for section in sections:
        if section.model is not None:
            raw.append(open_reward_model(section.model).to(args.device))
            tokenizers.append(_tokenizer_of(section))
            notes.append(f"Rewarded by the model {section.model}, weight {section.weight:g}.")
            continue
        function = make_reward_function(section.function, section.options)
        column = getattr(function, "column", None)
        if column is not None and column not in columns:
            raise ValueError(f"rewards: {section.function} compares with column {column!r}; there are {columns}")
        raw.append(function)
        tokenizers.append(None)
        options = "".join(f" {k} {v}," for k, v in section.options.items())
        notes.append(f"Rewarded by the function {section.function},{options} weight {section.weight:g}.")
    batch = getattr(args, "reward_batch_size", None) or args.per_device_train_batch_size
    return Rewards(raw, tokenizers, resolve_rewards(raw, tokenizers, batch) if raw else [], notes)


def open_reward_model(path: str) -> PreTrainedModel:
    """A reward model in float32; of an adapter, its base with the adapter merged into it.

    Raises:
        ValueError: there is none, or it has no trained head, or one for several labels.
    """
    path = checkpoint_path(path)
    try:
        if Path(path, "adapter_config.json").is_file():
            from peft import AutoPeftModelForSequenceClassification

            from hf_llm.tuning.adapters import merge

            adapted = AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
            merged = merge(adapted)
            merged.config._name_or_path = path  # else its name is its base's
            return merged
        return load_reward_model(path)
    except OSError as error:
        raise ValueError(f"rewards.model = {path!r} is no checkpoint: {error}") from error
    except RuntimeError as error:  # weights of another shape
        raise ValueError(
            f"rewards.model = {path!r}: the adapter or its base is not of a model with one label, and a reward is one "
            "number"
        ) from error


def _tokenizer_of(section: RewardSection) -> PreTrainedTokenizerBase:
    path = checkpoint_path(section.tokenizer or section.model)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"rewards: no tokenizer at {path}: {error}. Name one as tokenizer") from error
