"""Rewards, advantages and KL control of PPO, as pure functions of tensors.

Shapes: (batch, completion) unless it says otherwise. `mask` is 1 at the tokens of a completion, with its end token,
and 0 behind them; every row has at least one token. `reduce` sums a tensor over all processes.
"""

from collections.abc import Callable

import torch


Reduce = Callable[[torch.Tensor], torch.Tensor]


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """The `reduce` of a single process."""
    return tensor


def per_token_kl(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, estimator: str = "k1") -> torch.Tensor:
    """Estimate, token by token, of KL(policy || reference) in nats from log-probabilities of sampled tokens.

    "k1" is log(p/q): unbiased, and negative for single tokens. "k3" is q/p - 1 - log(q/p): never negative, less noisy.
    http://joschu.net/blog/kl-approx.html
    """
    if estimator == "k1":
        return log_probs - ref_log_probs
    log_ratio = ref_log_probs - log_probs
    return log_ratio.exp() - 1 - log_ratio


def token_rewards(
    scores: torch.Tensor, kl: torch.Tensor, kl_coef: float, mask: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Rewards of single tokens: -kl_coef * KL at each, and the score (batch,) on the last one (arXiv 1909.08593)."""
    rewards = -kl_coef * kl * mask
    rewards[torch.arange(len(scores), device=scores.device), lengths - 1] += scores
    return rewards


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimates and returns (arXiv 1506.02438, equation 16).

    A completion ends at its last token: no value is taken from behind it.

    Args:
        values: of the state in which each token was chosen.

    Returns:
        Advantages, and advantages + values: what the critic learns. Both are 0 behind a completion.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    following_value = following_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = (delta + gamma * lam * following_advantage) * mask[:, t]
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    return advantages, (advantages + values) * mask


def masked_moments(
    values: torch.Tensor, mask: torch.Tensor, reduce: Reduce = alone
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance over the masked-in entries of all processes."""
    mask = mask.to(torch.float64)
    total, count = reduce(torch.stack([(values * mask).sum(), mask.sum()]))
    mean = total / count.clamp(min=1)
    squares = reduce((((values - mean) ** 2) * mask).sum())
    return mean, squares / (count - 1).clamp(min=1)


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True, reduce: Reduce = alone) -> torch.Tensor:
    """Scale to unit variance over all processes, around zero or (`shift_mean=False`) around the old mean."""
    mean, variance = masked_moments(values, mask, reduce)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return (whitened * mask).to(values.dtype)


def explained_variance(
    values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, reduce: Reduce = alone
) -> torch.Tensor:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant, below for a harmful one."""
    _, residual = masked_moments(returns - values, mask, reduce)
    _, total = masked_moments(returns, mask, reduce)
    return 1 - residual / total.clamp(min=1e-12)


class KLController:
    """The KL coefficient: fixed, or steered toward a target (arXiv 1909.08593, section 2.2).

    Args:
        coefficient: to begin with.
        target: nats per completion to steer to; None keeps the coefficient.
        horizon: completions over which it may change by a factor of about e ** 0.2.
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: int = 10_000):
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, completions: int) -> None:
        """Take note of a rollout's mean KL per completion in nats."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * completions / self.horizon


class RunningMoments:
    """Mean and standard deviation of all scores seen so far, over all processes (Chan's parallel update)."""

    def __init__(self, mean: float = 0.0, squares: float = 0.0, count: int = 0):
        self.mean, self.squares, self.count = mean, squares, count

    def update(self, scores: torch.Tensor) -> None:
        """scores: (batch,), those of all processes."""
        scores = scores.double()
        count, mean = len(scores), scores.mean().item()
        delta, total = mean - self.mean, self.count + count
        self.squares += ((scores - mean) ** 2).sum().item() + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        return (self.squares / max(self.count - 1, 1)) ** 0.5

    def normalize(self, scores: torch.Tensor) -> torch.Tensor:
        """(scores - mean) / std; the scores themselves as long as none have been seen."""
        if not self.count:
            return scores
        return (scores - self.mean) / max(self.std, 1e-4)
