"""The alignment methods as a table, and the configuration of their runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trl
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_llm.training.settings import build_section
from hf_llm.tuning.job import TuningConfig

from .config import PPOConfig
from .preferences import PreferenceData
from .reward_functions import make_reward_function
from .rewards import open_reward_model, open_reward_tokenizer
from .trainer import PPOTrainer


@dataclass(frozen=True)
class Method:
    """A method of alignment.

    Attributes:
        title: its name in full, and the paper.
        trainer, config: classes of TRL, or ours.
        data: the kind of data that it learns from, a key of `preferences.KINDS`.
        metrics: name of a figure in the report -> the trainer's name of it, on held-out data.
        takes_encoder_decoders: whether it trains encoder-decoders, too.
    """

    title: str
    trainer: type[Trainer]
    config: type[TrainingArguments]
    data: str
    metrics: dict[str, str]
    takes_encoder_decoders: bool = False

    @property
    def is_online(self) -> bool:
        """Whether it learns from rewards of its own completions."""
        return self.data == "prompts"


_IMPLICIT = {
    "loss": "loss",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "log_prob_chosen": "logps/chosen",
    "log_prob_rejected": "logps/rejected",
}
_REWARDED = {"reward": "reward", "reward_std": "reward_std", "mean_length": "completions/mean_length", "kl": "kl"}

METHODS = {
    "dpo": Method(
        "direct preference optimization (arxiv.org/abs/2305.18290)",
        trl.DPOTrainer,
        trl.DPOConfig,
        "pairs of completions",
        _IMPLICIT,
    ),
    "kto": Method(
        "Kahneman-Tversky optimization (arxiv.org/abs/2402.01306)",
        trl.KTOTrainer,
        trl.KTOConfig,
        "judged completions",
        _IMPLICIT,
    ),
    "grpo": Method(
        "group relative policy optimization (arxiv.org/abs/2402.03300)",
        trl.GRPOTrainer,
        trl.GRPOConfig,
        "prompts",
        _REWARDED,
    ),
    "rloo": Method(
        "REINFORCE leave-one-out (arxiv.org/abs/2402.14740)", trl.RLOOTrainer, trl.RLOOConfig, "prompts", _REWARDED
    ),
    "ppo": Method(
        "proximal policy optimization (arxiv.org/abs/1909.08593)",
        PPOTrainer,
        PPOConfig,
        "prompts",
        {**_REWARDED, "total_reward": "total_reward", "eos_rate": "eos_rate"},
        takes_encoder_decoders=True,
    ),
}


@dataclass
class RewardSection:
    """One of the rewards of a run: {model: ...} or {function: ..., options: {...}}, each with a weight.

    Attributes:
        model: folder or Hub id of a reward model (sequence classification with one label): ours, native,
            or an adapter.
        tokenizer: of the reward model, if it is not beside it; it need not be the policy's.
        function: a name of `hf_llm.rlhf.reward_functions.REWARD_FUNCTIONS`, `FILE.py:function` or `module:function`.
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

    def describe(self) -> str:
        """A sentence for the model card."""
        kind = "model" if self.function is None else "function"
        options = "".join(f" {name} {value}," for name, value in self.options.items())
        return f"Rewarded by the {kind} {self.model or self.function},{options} weight {self.weight:g}."

    def resolve(self, columns: list[str]) -> tuple[PreTrainedModel | Callable, PreTrainedTokenizerBase | None]:
        """The model and its tokenizer, or the function.

        Args:
            columns: of the data set, which functions compare with.

        Raises:
            ValueError: no such model, tokenizer or function, wrong options, or a column that is missing.
        """
        if self.model is None:
            return make_reward_function(self.function, self.options, columns), None
        return open_reward_model(self.model), open_reward_tokenizer(self.tokenizer or self.model)


@dataclass
class CompletionsSection:
    """How many test prompts are completed before and after training, sampled, by at most so many tokens."""

    count: int = 8
    max_new_tokens: int = 48


@dataclass(kw_only=True)
class AlignConfig(TuningConfig):
    """A run of `recipes/dpo.py`, `kto.py`, `grpo.py`, `rloo.py` or `ppo.py`.

    Attributes:
        data: preferences, judged completions or prompts.
        rewards: where rewards come from, for the methods that learn from them (see `RewardSection`).
        completions: what is shown of the model.
        value_model: checkpoint whose backbone PPO's critic begins with; default: as `training.critic` says.
    """

    data: PreferenceData
    rewards: list | None = None
    completions: CompletionsSection = field(default_factory=CompletionsSection)
    value_model: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.reward_sections()

    def reward_sections(self) -> list[RewardSection]:
        return [build_section(RewardSection, entry, f"rewards[{i}]") for i, entry in enumerate(self.rewards or ())]
