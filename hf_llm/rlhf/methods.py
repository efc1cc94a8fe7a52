"""The methods that align language models with preferences or rewards, as a table, and their configuration."""

from dataclasses import dataclass, field
from pathlib import Path

import trl

from hf_llm.training.settings import build_section
from hf_llm.tuning.config import TuningConfig, load_tuning_config

from . import PPOConfig, PPOTrainer
from .preferences import PreferenceData
from .reward_sources import RewardSection
from .runs import MANAGED, Panels


@dataclass(frozen=True)
class Method:
    """A way to align a model.

    Attributes:
        title: what it is called in full.
        source: the paper.
        trainer, config: classes.
        data: the kind of data that it learns from, of `preferences.KINDS`.
        metrics: our name of a figure -> the trainer's, of held-out data.
        panels: of the curves.
        takes_encoder_decoders: whether its objective means something for them.
    """

    title: str
    source: str
    trainer: type
    config: type
    data: str
    metrics: dict[str, str]
    panels: Panels
    takes_encoder_decoders: bool = False

    @property
    def is_online(self) -> bool:
        """Whether it learns from rewards of its own completions."""
        return self.data == "prompts"


_PAIRED = {
    "loss": "loss",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "log_prob_chosen": "logps/chosen",
    "log_prob_rejected": "logps/rejected",
}
_UNPAIRED = {name: key for name, key in _PAIRED.items() if name != "accuracy"}
_REWARDED = {"reward": "reward", "reward_std": "reward_std", "mean_length": "completions/mean_length", "kl": "kl"}
_IMPLICIT = ("implicit reward", ("rewards/chosen", "rewards/rejected"))
_LOG_PROBS = ("log-probability", ("logps/chosen", "logps/rejected"))
_ONLINE = (("reward", ("reward",)), ("KL (nats)", ("kl",)), ("tokens", ("completions/mean_length",)))

METHODS = {
    "dpo": Method(
        "direct preference optimization",
        "arxiv.org/abs/2305.18290",
        trl.DPOTrainer,
        trl.DPOConfig,
        "pairs of completions",
        _PAIRED,
        (("loss", ("loss",)), ("accuracy", ("rewards/accuracies",)), _IMPLICIT, _LOG_PROBS),
    ),
    "kto": Method(
        "Kahneman-Tversky optimization",
        "arxiv.org/abs/2402.01306",
        trl.KTOTrainer,
        trl.KTOConfig,
        "judged completions",
        _UNPAIRED,
        (("loss", ("loss",)), _IMPLICIT, _LOG_PROBS, ("KL (nats)", ("kl",))),
    ),
    "grpo": Method(
        "group relative policy optimization",
        "arxiv.org/abs/2402.03300",
        trl.GRPOTrainer,
        trl.GRPOConfig,
        "prompts",
        _REWARDED,
        (*_ONLINE, ("entropy", ("entropy",))),
    ),
    "rloo": Method(
        "REINFORCE leave-one-out",
        "arxiv.org/abs/2402.14740",
        trl.RLOOTrainer,
        trl.RLOOConfig,
        "prompts",
        _REWARDED,
        (*_ONLINE, ("entropy", ("entropy",))),
    ),
    "ppo": Method(
        "proximal policy optimization",
        "arxiv.org/abs/1909.08593",
        PPOTrainer,
        PPOConfig,
        "prompts",
        {**_REWARDED, "total_reward": "total_reward", "eos_rate": "eos_rate"},
        (*_ONLINE, ("entropy", ("policy/entropy",)), ("value loss", ("value/loss",))),
        takes_encoder_decoders=True,
    ),
}


@dataclass
class CompletionsSection:
    """How many test prompts are completed before and after training, sampled, by at most so many tokens."""

    count: int = 8
    max_new_tokens: int = 48

    def __post_init__(self):
        if self.count < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"completions.count = {self.count} must be at least 0, completions.max_new_tokens = "
                f"{self.max_new_tokens} at least 1"
            )


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

    def reward_sections(self) -> list[RewardSection]:
        return [build_section(RewardSection, entry, f"rewards[{i}]") for i, entry in enumerate(self.rewards or ())]


def load_align_config(method: str, path: str | Path, overrides: list[str] = ()) -> AlignConfig:
    """The run of a method of `METHODS` that a YAML file and `--section.field value` overrides describe.

    Raises:
        ValueError: names what is wrong.
    """
    config = load_tuning_config(AlignConfig, METHODS[method].config, path, overrides, MANAGED)
    if METHODS[method].is_online and not config.rewards:
        raise ValueError(f"rewards: {method} learns from rewards, name at least one (model or function)")
    if config.rewards and not METHODS[method].is_online:
        raise ValueError(f"rewards: {method} learns from {METHODS[method].data}, and takes no rewards")
    if config.value_model is not None and method != "ppo":
        raise ValueError(f"value_model: {method} has no critic, ppo has")
    config.reward_sections()
    return config
