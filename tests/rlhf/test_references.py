"""The arithmetic of PPO against TRL 1.12.0's and against plain loops.

trl_1_12_0.json holds random inputs and what the lines of TRL 1.12.0's `experimental/ppo/ppo_trainer.py` (steps 4 to 6
of a rollout, `masked_whiten`, and the losses of a minibatch) made of them, in float32.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_llm.rlhf.advantages import (
    KLController,
    RunningMoments,
    explained_variance,
    gae,
    per_token_kl,
    token_rewards,
    whiten,
)
from hf_llm.rlhf.losses import policy_loss, value_loss


TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def trl():
    stored = json.loads((Path(__file__).parent / "trl_1_12_0.json").read_text(encoding="utf-8"))
    return {name: torch.tensor(value) if isinstance(value, list) else value for name, value in stored.items()}


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_is_that_of_trl(trl, estimator):
    kl = per_token_kl(trl["log_probs"], trl["ref_log_probs"], estimator)
    torch.testing.assert_close(kl, trl[estimator], **TOLERANCE)


def test_rewards_and_advantages_are_those_of_trl(trl):
    full = torch.ones_like(trl["values"])
    lengths = full.sum(1).long()
    kl = per_token_kl(trl["log_probs"], trl["ref_log_probs"])
    rewards = token_rewards(trl["scores"], kl, trl["kl_coef"], full, lengths)
    advantages, returns = gae(rewards, trl["values"], full, trl["gamma"], trl["lam"])
    torch.testing.assert_close(rewards, trl["rewards"], **TOLERANCE)
    torch.testing.assert_close(advantages, trl["advantages"], **TOLERANCE)
    torch.testing.assert_close(returns, trl["returns"], **TOLERANCE)


def test_whitening_is_that_of_trl(trl):
    whitened = whiten(trl["advantages"], trl["mask"])
    torch.testing.assert_close(whitened, trl["whitened_advantages"], **TOLERANCE)
    kept = whiten(trl["rewards"], trl["mask"], shift_mean=False)
    torch.testing.assert_close(kept, trl["whitened_rewards"], **TOLERANCE)


def test_losses_are_those_of_trl(trl):
    mask, tokens = trl["mask"], trl["mask"].sum()
    policy = policy_loss(trl["new_log_probs"], trl["log_probs"], trl["advantages"], mask, trl["clip"], trl["clip"])
    value, clipped = value_loss(trl["new_values"], trl["values"], trl["returns"], mask, trl["clip"])
    found = [policy.total / tokens, policy.clipped.sum() / tokens, value / tokens, clipped.sum() / tokens]
    names = ["policy_loss", "policy_clip_fraction", "value_loss", "value_clip_fraction"]
    for name, number in zip(names, found):
        assert number.item() == pytest.approx(trl[name], abs=1e-6), name
        assert trl[name] != 0, f"{name} = 0 shows nothing"


def ragged(seed: int = 0):
    """Rewards, values (float64) and mask of four completions of 1 to 7 tokens."""
    rng = np.random.default_rng(seed)
    lengths = np.array([7, 1, 4, 6])
    mask = (np.arange(7) < lengths[:, None]).astype(float)
    return rng.normal(size=(4, 7)), rng.normal(size=(4, 7)), mask, lengths


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_advantages_are_the_sum_of_their_definition(gamma, lam):
    rewards, values, mask, lengths = ragged()
    expected = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        for t in range(length):
            for k in range(t, length):
                following = values[row, k + 1] if k + 1 < length else 0.0
                delta = rewards[row, k] + gamma * following - values[row, k]
                expected[row, t] += (gamma * lam) ** (k - t) * delta
    advantages, returns = gae(*map(torch.from_numpy, (rewards, values, mask)), gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-12)
    np.testing.assert_allclose(returns, (expected + values) * mask, atol=1e-12)


def test_what_stands_behind_a_completion_changes_nothing():
    rewards, values, mask, _ = (torch.from_numpy(x) for x in ragged())
    before = gae(rewards, values, mask, 1.0, 0.95)
    noise = 100 * (1 - mask)
    after = gae(rewards + noise, values - noise, mask, 1.0, 0.95)
    for one, other in zip(before, after):
        assert torch.equal(one, other)
        assert not (one * (1 - mask)).any()


def test_the_score_is_on_the_last_token():
    _, _, mask, lengths = ragged()
    rewards = token_rewards(
        torch.arange(1.0, 5.0), torch.zeros(4, 7), 0.1, torch.from_numpy(mask), torch.from_numpy(lengths)
    )
    assert [(row.nonzero().item(), row.sum().item()) for row in rewards] == [(6, 1), (0, 2), (3, 3), (5, 4)]


def test_whitening_in_parts_is_whitening_as_a_whole():
    """`reduce` adds what the other process has."""
    values, mask = torch.randn(6, 5, dtype=torch.float64), (torch.rand(6, 5) > 0.3).double()
    halves = [slice(0, 3), slice(3, 6)]
    whole = whiten(values, mask)
    mean = (values * mask).sum() / mask.sum()
    others = {  # what each half's reductions must see of the other half
        i: [
            torch.stack([(values[h] * mask[h]).sum(), mask[h].sum()]),
            (((values[h] - mean) ** 2) * mask[h]).sum(),
        ]
        for i, h in enumerate(reversed(halves))
    }
    for i, half in enumerate(halves):
        pending = iter(others[i])
        part = whiten(values[half], mask[half], reduce=lambda tensor, pending=pending: tensor + next(pending))
        torch.testing.assert_close(part, whole[half], rtol=0, atol=1e-12)
    chosen = values[mask.bool()].numpy()
    np.testing.assert_allclose(whole[mask.bool()], (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8))


def test_policy_gradient_stops_where_the_ratio_is_clipped():
    log_probs = torch.tensor([[0.5, -0.5, 0.05, -0.5, 0.5]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0]])
    loss = policy_loss(log_probs, torch.zeros(1, 5), advantages, torch.ones(1, 5), 0.2, 0.2)
    loss.total.backward()
    assert loss.clipped.tolist() == [[1, 1, 0, 0, 0]]
    assert (log_probs.grad == 0).tolist() == [[True, True, False, False, False]]


def test_explained_variance():
    returns, mask = torch.randn(4, 7), torch.from_numpy(ragged()[2])
    assert explained_variance(returns, returns, mask).item() == pytest.approx(1)
    assert explained_variance(torch.zeros(4, 7), returns, mask).item() == pytest.approx(0)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3)


def test_kl_controller():
    fixed, adaptive = KLController(0.1), KLController(0.1, target=6.0, horizon=1000)
    for controller in (fixed, adaptive):
        controller.update(12.0, 100)  # twice the target: the error is cut to 0.2
    assert fixed.coefficient == 0.1
    assert adaptive.coefficient == pytest.approx(0.1 * (1 + 0.2 * 100 / 1000))
    adaptive.update(5.4, 100)
    assert adaptive.coefficient == pytest.approx(0.102 * (1 - 0.1 * 100 / 1000))


def test_running_moments_are_those_of_everything():
    parts = [torch.randn(n) * 3 + 5 for n in (4, 1, 9)]
    moments = RunningMoments()
    assert torch.equal(moments.normalize(parts[0]), parts[0])  # an evaluation before training
    for part in parts:
        moments.update(part)
    whole = torch.cat(parts).double()
    assert (moments.mean, moments.std) == pytest.approx((whole.mean().item(), whole.std().item()))
