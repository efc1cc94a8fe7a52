"""Settings of PPO: those of TRL's RLOO and transformers' Trainer, and PPO's own."""

import math
from dataclasses import dataclass, field

from .trl_internals import BaseConfig, RLOOConfig


_CHOICES = {
    "critic": ("auto", "policy", "reward_model", "shared"),
    "kl_estimator": ("k1", "k3"),
    "value_head_init": ("normal", "zeros"),
}
# fields of RLOOConfig without effect in PPO -> (the value that they must keep, what to use instead)
_UNUSED = {
    "beta": (0.0, "the KL coefficient is kl_coef"),
    "normalize_advantages": (False, "advantages are whitened with whiten_advantages"),
    "mask_truncated_completions": (False, "completions without an end token are met by missing_eos_penalty"),
    "sync_ref_model": (False, "the reference stays what the policy was"),
    "auto_find_batch_size": (False, "a rollout's size would change: lower per_device_train_batch_size"),
    "use_liger_kernel": (False, "its kernels replace the forward pass that PPO extends"),
}
# fields that would sample from another distribution than the policy's -> legal values
_SAMPLING = {"top_p": (1.0,), "top_k": (0, None), "min_p": (None,), "repetition_penalty": (1.0,)}
_GENERATION_KWARGS = ("do_sample", "max_time", "seed", "use_cache", "prefill_chunk_size")
# field -> (whether a value is legal, which values are)
_RANGES = {
    **{name: (names.__contains__, f"one of {', '.join(names)}") for name, names in _CHOICES.items()},
    "kl_coef": (lambda x: x >= 0, "at least 0"),
    "kl_target": (lambda x: x is None or x > 0, "positive, or None for a fixed coefficient"),
    "kl_horizon": (lambda x: x > 0, "positive"),
    "gamma": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "lam": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "epsilon": (lambda x: x > 0, "positive"),
    "epsilon_high": (lambda x: x is None or x > 0, "positive, or None for epsilon"),
    "cliprange_value": (lambda x: x is None or x > 0, "positive, or None for an unclipped value loss"),
    "vf_coef": (lambda x: x >= 0, "at least 0"),
    "missing_eos_penalty": (lambda x: x is None or x >= 0, "at least 0: it is subtracted; or None"),
    "early_stop_kl": (lambda x: x is None or x > 0, "positive, or None"),
    "critic_warmup_steps": (lambda x: x >= 0, "at least 0"),
    "critic_learning_rate": (lambda x: x is None or x > 0, "positive, or None for learning_rate"),
    "temperature": (lambda x: x > 0, "positive"),
    "max_completion_length": (lambda x: x is not None and x > 0, "positive"),
    "num_iterations": (lambda x: x >= 1, "at least 1"),
    "num_generations": (lambda x: x is not None and x >= 1, "at least 1"),
    "num_mini_batches": (lambda x: x is None or x >= 1, "at least 1, or None"),
    "reward_batch_size": (lambda x: x is None or x >= 1, "at least 1, or None for per_device_train_batch_size"),
}


@dataclass
class PPOConfig(RLOOConfig):
    """Settings of [`PPOTrainer`]. All of TRL's `RLOOConfig` and transformers' `TrainingArguments` beside these.

    One rollout is `generation_batch_size` completions over all processes. They are passed over `num_iterations` times
    (the PPO epochs), each time in another order, in `num_mini_batches` optimizer steps of
    `per_device_train_batch_size * gradient_accumulation_steps * processes` completions. Fields of RLOO that keep their
    meaning: `num_iterations`, `epsilon` and `epsilon_high` (policy clipping), `temperature`, `max_completion_length`,
    `reward_weights`, `reward_clip_range`, `num_generations` (completions per prompt, 1 here), `disable_dropout` (True
    here), `log_completions`, and everything about vLLM and continuous batching.

    Args:
        num_mini_batches: optimizer steps per pass over a rollout. None: from `steps_per_generation` or
            `generation_batch_size`, or 1.
        kl_coef: what a nat of KL from the reference costs, per token; 0 for no reference at all.
        kl_target: nats of KL per completion to steer `kl_coef` to; None keeps it fixed (arXiv 1909.08593).
        kl_horizon: completions over which `kl_coef` may change by a factor of about e ** 0.2.
        kl_estimator: "k1" (unbiased, may be negative) or "k3" (never negative).
        gamma: discount per token.
        lam: lambda of GAE.
        whiten_rewards: bring token rewards to unit variance around their own mean, over all processes.
        whiten_advantages: bring advantages to mean 0 and variance 1, over all processes.
        normalize_scores: subtract the running mean of all scores and divide by their running standard deviation.
        missing_eos_penalty: subtracted from the score of a completion that does not end with an end token.
        vf_coef: weight of the value loss.
        cliprange_value: how far a value may move from what it was at the rollout; None: as far as it likes.
        critic: where values come from. "shared": a head on the policy's own backbone. "policy", "reward_model": a
            backbone of its own, begun as a copy of one or the other. "auto": the reward model if there is one of the
            policy's architecture and vocabulary and the policy has no adapter, else the policy.
        value_head_init: "normal" (standard deviation 1 / sqrt(hidden + 1)) or "zeros".
        critic_learning_rate: None: `learning_rate`.
        critic_warmup_steps: optimizer steps in which the critic learns and the policy does not.
        early_stop_kl: nats per token; when a minibatch finds the policy further than that (k3 estimate) from where
            its rollout was sampled, that minibatch and the rest of the rollout pass without an update.
        reward_batch_size: completions that a reward model scores at a time; None: `per_device_train_batch_size`.
        reward_append_eos: end plain text for a reward model with its end token, as TRL's RewardTrainer does in
            training. False for classifiers that were trained without.
        save_inside_rollouts: allow `save_steps` that fall inside rollouts, whose checkpoints then hold the rollout.

    Raises:
        ValueError: naming the field, its value and what is legal.
    """

    num_generations: int | None = field(default=1, metadata={"help": "Completions per prompt."})
    num_iterations: int = field(default=4, metadata={"help": "PPO epochs: passes over each rollout."})
    learning_rate: float = field(default=3e-6, metadata={"help": "The initial learning rate."})
    beta: float = field(default=0.0, metadata={"help": "Not used by PPO: see kl_coef."})
    disable_dropout: bool = field(default=True, metadata={"help": "Switch off dropout in all models."})

    num_mini_batches: int | None = field(default=None, metadata={"help": "Optimizer steps per pass over a rollout."})
    kl_coef: float = field(default=0.05, metadata={"help": "Cost of a nat of KL from the reference, per token."})
    kl_target: float | None = field(default=None, metadata={"help": "Nats per completion to steer kl_coef to."})
    kl_horizon: int = field(default=10_000, metadata={"help": "Completions over which kl_coef adapts."})
    kl_estimator: str = field(default="k1", metadata={"help": f"One of {_CHOICES['kl_estimator']}."})
    gamma: float = field(default=1.0, metadata={"help": "Discount per token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Unit variance of token rewards, mean kept."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Mean 0 and variance 1 of advantages."})
    normalize_scores: bool = field(default=False, metadata={"help": "Normalize scores by their running moments."})
    missing_eos_penalty: float | None = field(default=None, metadata={"help": "Subtracted where no end token is."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float | None = field(default=0.2, metadata={"help": "Clip range of values; None: unclipped."})
    critic: str = field(default="auto", metadata={"help": f"One of {_CHOICES['critic']}."})
    value_head_init: str = field(default="normal", metadata={"help": f"One of {_CHOICES['value_head_init']}."})
    critic_learning_rate: float | None = field(default=None, metadata={"help": "None: learning_rate."})
    critic_warmup_steps: int = field(default=0, metadata={"help": "Optimizer steps for the critic alone."})
    early_stop_kl: float | None = field(default=None, metadata={"help": "Nats per token that end a rollout's use."})
    reward_batch_size: int | None = field(default=None, metadata={"help": "Completions scored at a time."})
    reward_append_eos: bool = field(default=True, metadata={"help": "End text for reward models with EOS."})
    save_inside_rollouts: bool = field(default=False, metadata={"help": "Allow save_steps inside rollouts."})

    def __post_init__(self):
        # not RLOOConfig's, which refuses one completion per prompt
        BaseConfig.__post_init__(self)
        self._check_values()
        self._settle_batches()
        self._check_steps()
        if isinstance(self.pad_to_multiple_of, str):  # TRL's "auto" pads on AWS Neuron alone
            text = self.pad_to_multiple_of.lower()
            self.pad_to_multiple_of = None if text in ("auto", "none", "null") else int(text)

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps for which a rollout serves."""
        return self.steps_per_generation // self.gradient_accumulation_steps * self.num_iterations

    def _check_values(self) -> None:
        for name, (kept, instead) in _UNUSED.items():
            if getattr(self, name, kept) != kept:
                raise ValueError(f"{name} = {getattr(self, name)!r} has no meaning in PPO: {instead}")
        for name, legal in _SAMPLING.items():
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"{name} = {getattr(self, name)!r}: completions must be sampled from the policy itself, or the "
                    f"ratios of PPO mean nothing; the only legal value is {legal[0]!r}"
                )
        for name in self.generation_kwargs or {}:
            if name not in _GENERATION_KWARGS:
                raise ValueError(
                    f"generation_kwargs[{name!r}] would change the distribution that completions are sampled from, or "
                    f"is a field of PPOConfig; legal are {', '.join(_GENERATION_KWARGS)}"
                )
        for name, (is_legal, legal) in _RANGES.items():
            if not is_legal(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)!r}, but it must be {legal}")
        if not all(math.isfinite(weight) for weight in self.reward_weights or ()):
            raise ValueError(f"reward_weights = {self.reward_weights!r}, but they must be finite numbers")
        if self.parallelism_config is not None:
            raise ValueError(f"parallelism_config = {self.parallelism_config!r}: PPO runs on processes by DDP alone")
        if self.reward_clip_range is not None and not self.reward_clip_range[0] < self.reward_clip_range[1]:
            raise ValueError(f"reward_clip_range = {self.reward_clip_range!r}, but it must be (low, high), low < high")

    def _settle_batches(self) -> None:
        """Fill in `generation_batch_size` and `steps_per_generation` (micro-batches per rollout and process)."""
        accumulation, processes = self.gradient_accumulation_steps, self.world_size
        micro_batch = self.per_device_train_batch_size * processes
        if self.generation_batch_size is not None and self.generation_batch_size % (micro_batch * accumulation):
            raise ValueError(
                f"generation_batch_size = {self.generation_batch_size} is not divisible by the minibatch of "
                f"{self.per_device_train_batch_size} per_device_train_batch_size x {processes} process(es) x "
                f"{accumulation} gradient_accumulation_steps = {micro_batch * accumulation}"
            )
        units = {"num_mini_batches": accumulation, "steps_per_generation": 1, "generation_batch_size": 1 / micro_batch}
        given = {name: getattr(self, name) for name in units if getattr(self, name) is not None}
        sizes = {round(given[name] * units[name]) for name in given}
        if len(sizes) > 1:
            listed = " and ".join(f"{name} = {value}" for name, value in given.items())
            raise ValueError(f"{listed} are rollouts of different sizes: give one of them")
        self.steps_per_generation = sizes.pop() if sizes else accumulation
        if self.steps_per_generation % accumulation:
            raise ValueError(
                f"steps_per_generation = {self.steps_per_generation} is not divisible by "
                f"gradient_accumulation_steps = {accumulation}: a minibatch would reach from one rollout into the next"
            )
        self.generation_batch_size = micro_batch * self.steps_per_generation
        self.num_mini_batches = self.steps_per_generation // accumulation
        if self.generation_batch_size % self.num_generations:
            raise ValueError(
                f"generation_batch_size = {self.generation_batch_size} is not divisible by num_generations = "
                f"{self.num_generations}"
            )
        evaluated = self.per_device_eval_batch_size * self.world_size
        generations = self.num_generations_eval or self.num_generations
        if self.eval_strategy != "no" and evaluated % generations:
            raise ValueError(
                f"per_device_eval_batch_size x processes = {evaluated} is not divisible by the {generations} "
                "completions per prompt of num_generations_eval"
            )

    def _check_steps(self) -> None:
        inside = self.save_strategy == "steps" and self.save_steps >= 1 and self.save_steps % self.steps_per_rollout
        if inside and not self.save_inside_rollouts:
            raise ValueError(
                f"save_steps = {self.save_steps:g} does not align with rollouts, which serve for "
                f"{self.steps_per_rollout} optimizer steps (num_mini_batches = {self.num_mini_batches} x "
                f"num_iterations = {self.num_iterations}): choose a multiple, or set save_inside_rollouts=True to "
                "keep the rollout in the checkpoint"
            )
