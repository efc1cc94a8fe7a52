"""Checkpoints of PPO: the policy as a plain model, the critic beside it, and what exact resuming needs.

A checkpoint folder holds, beside what transformers' Trainer writes:

    critic.safetensors        trained weights of the critic (not the frozen ones that it shares with the policy)
    ppo_state.json            KL coefficient, score statistics, position inside the rollout
    rollout-R.safetensors     of process R, if the rollout is not used up
    manifest.json             size and SHA-256 of every file
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..training.saving import AtomicCheckpoints
from .advantages import RunningMoments
from .critic import Critic, base_of
from .policy import without_critic
from .rollout import Rollout


CRITIC_FILE = "critic.safetensors"
STATE_FILE = "ppo_state.json"
# settings that decide the shape of a rollout, and therefore must not change on resuming
_SHAPE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "world_size",
    "seed",
)


def critic_state(critic: Critic) -> dict[str, torch.Tensor]:
    """The critic's trained weights by name, contiguous and on the CPU."""
    return {name: p.detach().cpu().contiguous() for name, p in critic.named_parameters() if p.requires_grad}


def load_critic(critic: Critic, path: Path) -> None:
    """Give a critic the weights of `critic.safetensors`.

    Raises:
        ValueError: they are of another critic.
    """
    saved, own = load_file(path), critic_state(critic)
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        different = sorted(saved.keys() ^ own.keys()) or sorted(n for n in own if saved[n].shape != own[n].shape)
        raise ValueError(f"{path} is of another critic; the first weight that differs is {different[0]}")
    critic.load_state_dict(saved, strict=False)


class SavesPPO(AtomicCheckpoints):
    """The part of [`PPOTrainer`] that writes and reads checkpoints."""

    def _save(self, output_dir=None, state_dict=None) -> None:
        output_dir = Path(output_dir or self.args.output_dir)
        with without_critic(base_of(self.model)), self.dropout.restored():
            super()._save(str(output_dir), state_dict)
        if self.args.should_save:
            save_file(critic_state(self.critic), output_dir / CRITIC_FILE, metadata={"format": "pt"})

    @property
    def _inside_rollout(self) -> bool:
        return self._rollout is not None and self._step % self._steps_per_rollout != 0

    def _save_rng_state(self, output_dir) -> None:
        """The state of each process: of its random numbers, and its part of the rollout."""
        super()._save_rng_state(output_dir)
        if self._inside_rollout:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self._rollout.tensors.items()}
            save_file(tensors, Path(output_dir) / f"rollout-{self.accelerator.process_index}.safetensors")

    def _save_run_state(self, staged: Path) -> None:
        super()._save_run_state(staged)
        state = {
            "micro_step": self._step,
            "kl_coef": self.kl.coefficient,
            "scores": vars(self.score_moments),
            "stopped_early": self._stopped_early,
            "inside_rollout": self._inside_rollout,
            "shape": {name: getattr(self.args, name) for name in _SHAPE},
        }
        (staged / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        state = self._read_ppo_state(checkpoint)
        with without_critic(base_of(self.model)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_critic(self.critic, checkpoint / CRITIC_FILE)
        self._step = state["micro_step"]
        self.kl.coefficient = state["kl_coef"]
        self.score_moments = RunningMoments(**state["scores"])
        self._stopped_early = state["stopped_early"]
        self._rollout = None
        if state["inside_rollout"]:
            tensors = load_file(checkpoint / f"rollout-{self.accelerator.process_index}.safetensors")
            device = self.accelerator.device
            self._rollout = self._make_rollout({name: tensor.to(device) for name, tensor in tensors.items()})

    def _read_ppo_state(self, checkpoint: Path) -> dict:
        if not (checkpoint / STATE_FILE).is_file():
            raise ValueError(f"resume_from_checkpoint = {checkpoint} is no checkpoint of PPO: it has no {STATE_FILE}")
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        for name, saved in state["shape"].items():
            if getattr(self.args, name) != saved:
                raise ValueError(
                    f"{checkpoint} was saved with {name} = {saved}, but it is {getattr(self.args, name)} now: samples "
                    "and rollouts would not go on where they were"
                )
        return state

    def _load_best_model(self) -> None:
        with without_critic(base_of(self.model)):
            super()._load_best_model()
        load_critic(self.critic, Path(self.state.best_model_checkpoint) / CRITIC_FILE)

    def _make_rollout(self, tensors: dict[str, torch.Tensor]) -> Rollout:
        number = self._step // self._steps_per_rollout
        seed = (self.args.seed, self.accelerator.process_index, number)
        size = self.args.per_device_train_batch_size
        return Rollout(tensors, size, size * self.args.gradient_accumulation_steps, seed)
