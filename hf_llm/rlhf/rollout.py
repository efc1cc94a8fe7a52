"""A rollout: what one process sampled, cut into micro-batches, in another order at each pass. And prompts' order."""

from collections.abc import Iterator

import numpy as np
import torch

from .trl_internals import RepeatSampler


class Rollout:
    """Completions of one process with all that the losses need.

    Args:
        tensors: by name, all with the same first dimension: `prompt_ids`, `prompt_mask`, `completion_ids`,
            `completion_mask`, and what belongs to single tokens of completions.
        micro_batch_size: completions per forward pass.
        minibatch_size: completions per optimizer step. Which ones it has is random; those of like lengths are in one
            micro-batch, so that little is padding. (The losses are sums over a minibatch, however it is cut.)
        seed: numbers that name this rollout; the order of its passes follows from them.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor], micro_batch_size: int, minibatch_size: int, seed: tuple[int, ...]
    ):
        self.tensors, self.seed = tensors, seed
        self.micro_batch_size, self.minibatch_size = micro_batch_size, minibatch_size

    def __len__(self) -> int:
        return len(self.tensors["completion_ids"])

    def order(self, epoch: int) -> torch.LongTensor:
        """Which completions come one after another in a pass. The first takes them as they are: log-probabilities of
        the sampling policy were taken in the same micro-batches, so the first ratios are exactly 1."""
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
    """A batch without the columns in which nobody has a token: on one side of prompts, and behind completions."""
    prompt, completion = batch["prompt_mask"].any(0), batch["completion_mask"].any(0)
    return {name: tensor[:, prompt if name.startswith("prompt") else completion] for name, tensor in batch.items()}


def lengths_of(batch: dict[str, torch.Tensor]) -> torch.LongTensor:
    """Tokens of each prompt and completion together, (batch,), on the CPU."""
    return (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).cpu()


def by_length(order: torch.LongTensor, lengths: torch.LongTensor, minibatch_size: int) -> torch.LongTensor:
    """The same minibatches as in `order`, each sorted by the `lengths` of its rows, the longest first: what does not
    fit into memory shows at once."""
    minibatches = order.view(-1, minibatch_size)
    return minibatches.gather(1, lengths[minibatches].argsort(dim=1, descending=True, stable=True)).flatten()


class EpochSampler(RepeatSampler):
    """TRL's sampler, with an order that follows from seed and `epoch` alone, so that a resumed run goes on in it."""

    epoch = 0

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class ShufflesByEpoch:
    """Mixin for TRL's trainers that learn from rewards: runs resume in any epoch with the prompts that come next."""

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if isinstance(sampler, RepeatSampler):
            sampler = self._sampler = EpochSampler(**{name: getattr(sampler, name) for name in _SAMPLER_ARGUMENTS})
        return sampler

    def _run_epoch(self, **kwargs):
        if hasattr(self, "_sampler"):  # streams have none
            self._sampler.epoch = kwargs["epoch"]
        super()._run_epoch(**kwargs)


_SAMPLER_ARGUMENTS = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
