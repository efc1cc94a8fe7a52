"""Which rows share a minibatch is drawn; which of them share a micro-batch follows from their lengths."""

import pytest
import torch

from hf_llm.rlhf.rollout import Rollout, lengths_of

from . import toys


def rollout(rows: int = 24, micro_batch: int = 2, minibatch: int = 8) -> Rollout:
    """Rows of 1 to 4 prompt tokens, on the right of their columns, and 1 to 9 completion tokens."""
    torch.manual_seed(0)
    prompts, completions = torch.randint(1, 5, (rows, 1)), torch.randint(1, 10, (rows, 1))
    tensors = {
        "prompt_mask": (torch.arange(4) >= 4 - prompts).long(),
        "completion_mask": (torch.arange(9) < completions).long(),
    }
    tensors |= {"prompt_ids": tensors["prompt_mask"] * 7, "completion_ids": torch.arange(rows)[:, None].expand(-1, 9)}
    return Rollout(tensors, micro_batch, minibatch, seed=(1, 0, 3))


@pytest.mark.parametrize("epoch", [1, 2])
def test_rows_of_like_lengths_share_micro_batches(epoch):
    found = rollout()
    lengths, order = lengths_of(found.tensors), found.order(epoch)
    assert sorted(order.tolist()) == list(range(24))
    assert torch.equal(order, found.order(epoch)) and not torch.equal(order, found.order(3))
    minibatches = order.view(3, 8)
    assert (lengths[minibatches].diff(dim=1) <= 0).all()
    shuffled = found.order(epoch + 5).view(3, 8)  # who is in a minibatch is drawn anew
    assert {frozenset(m.tolist()) for m in minibatches} != {frozenset(m.tolist()) for m in shuffled}


def test_micro_batches_are_what_their_tokens_say():
    found = rollout()
    widths = []
    for index in range(12):
        batch, rows = found.micro_batch(1, index), found.order(1)[2 * index : 2 * index + 2]
        assert batch["completion_ids"][:, 0].tolist() == rows.tolist()
        assert batch["completion_mask"].sum() == found.tokens(1)[index]
        assert batch["prompt_mask"].any(0).all() and batch["completion_mask"].any(0).all()
        widths.append(batch["prompt_mask"].shape[1] + batch["completion_mask"].shape[1])
    assert sum(widths) < 12 * 13 * 0.8  # what lies between is padding that nobody computes


def test_the_first_pass_is_sorted_too(tmp_path):
    """A rollout's own order is that of its first pass, whose micro-batches the old log-probabilities came from."""
    run = toys.trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_mini_batches=2)
    run.train()
    lengths = lengths_of(run._rollout.tensors).view(2, 8)
    assert (lengths.diff(dim=1) <= 0).all() and len(lengths.unique()) > 1
    assert run._rollout.order(0).tolist() == list(range(16))
    assert toys.logged(run, "policy/ratio_max")[0] == 1
