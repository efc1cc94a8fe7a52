"""A rollout: the completions of one process, cut into micro-batches, reshuffled for each pass; and prompts' order."""

import numpy as np
import torch

from .trl_internals import RepeatSampler


class Rollout:
    """Completions of one process with all that the losses need.

    Args:
        tensors: by name, all with the same first dimension: `prompt_ids`, `prompt_mask`, `completion_ids`,
            `completion_mask`, and what belongs to single tokens of completions.
        micro_batch_size: completions per forward pass.
        minibatch_size: completions per optimizer step, drawn at random. Sorting by length into micro-batches saves
            padding; as losses are sums over a minibatch, its division has no effect.
        seed: of the order of the passes: integers that identify the rollout.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor], micro_batch_size: int, minibatch_size: int, seed: tuple[int, ...]
    ):
        self.tensors, self.seed = tensors, seed
        self.micro_batch_size, self.minibatch_size = micro_batch_size, minibatch_size

    def __len__(self) -> int:
        return len(self.tensors["completion_ids"])

    def order(self, epoch: int) -> torch.LongTensor:
        """Order of the completions in a pass. The first has the micro-batches in which the old log-probabilities were
        computed, so that its first ratios are exactly 1."""
        if epoch == 0:
            return torch.arange(len(self))
        shuffled = torch.from_numpy(np.random.default_rng([*self.seed, epoch]).permutation(len(self)))
        return by_length(shuffled, lengths_of(self.tensors), self.minibatch_size)

    def micro_batch(self, epoch: int, index: int) -> dict[str, torch.Tensor]:
        """The `index`-th micro-batch of a pass, without columns that are padding in all its rows."""
        rows = self.order(epoch)[index * self.micro_batch_size : (index + 1) * self.micro_batch_size]
        return trimmed({name: tensor[rows.to(tensor.device)] for name, tensor in self.tensors.items()})

    def tokens(self, epoch: int) -> torch.Tensor:
        """Completion tokens in each micro-batch of a pass, (micro-batches,)."""
        lengths = self.tensors["completion_mask"].sum(1)
        return lengths[self.order(epoch).to(lengths.device)].view(-1, self.micro_batch_size).sum(1)


def trimmed(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch without the columns that are padding in all rows."""
    prompt, completion = batch["prompt_mask"].any(0), batch["completion_mask"].any(0)
    return {name: tensor[:, prompt if name.startswith("prompt") else completion] for name, tensor in batch.items()}


def lengths_of(batch: dict[str, torch.Tensor]) -> torch.LongTensor:
    """Tokens of each prompt and completion together, (batch,), on the CPU."""
    return (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).cpu()


def by_length(order: torch.LongTensor, lengths: torch.LongTensor, minibatch_size: int) -> torch.LongTensor:
    """The minibatches of `order`, each sorted by length, longest first: too large a batch fails at once."""
    minibatches = order.view(-1, minibatch_size)
    return minibatches.gather(1, lengths[minibatches].argsort(dim=1, descending=True, stable=True)).flatten()


class ShufflesByEpoch:
    """Mixin for TRL's trainers that learn from rewards: prompts are shuffled by seed and epoch alone, so that a run
    that is resumed in a later epoch continues with the prompts that come next."""

    _sampler = None

    def _get_train_sampler(self, dataset=None):
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _run_epoch(self, **kwargs):
        sampler = self._sampler
        if isinstance(sampler, RepeatSampler) and sampler.shuffle:
            sampler.generator.manual_seed(sampler.seed + kwargs["epoch"])
        super()._run_epoch(**kwargs)
