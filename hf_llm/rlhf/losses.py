"""The two clipped losses of PPO and what is watched of them, token by token.

Shapes: (batch, completion); `mask` is 1 at the tokens of a completion. Losses come as sums over tokens, so that the
mean over a minibatch is the same however it is cut into micro-batches and spread over processes.
"""

from dataclasses import dataclass

import torch


@dataclass
class PolicyLoss:
    """Attributes:
    total: sum over tokens of the clipped loss, with gradient.
    ratio: probability of each token over what it was when it was sampled, 1 behind the completion.
    clipped: 1 where the gradient is cut off.
    approx_kl: k3 estimate of KL(sampling policy || policy), nats per token.
    """

    total: torch.Tensor
    ratio: torch.Tensor
    clipped: torch.Tensor
    approx_kl: torch.Tensor


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyLoss:
    """The clipped surrogate objective, negated (arXiv 1707.06347, equation 7)."""
    log_ratio = (log_probs - old_log_probs) * mask
    ratio = log_ratio.exp()
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    with torch.no_grad():
        clipped = (bounded > free).float() * mask
        approx_kl = (ratio - 1 - log_ratio) * mask
    return PolicyLoss((torch.max(free, bounded) * mask).sum(), ratio.detach(), clipped, approx_kl)


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float | None = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error, or that of the value kept within `clip` of what it was, whichever is larger.

    As in OpenAI's baselines (https://github.com/openai/baselines, ppo2). `clip=None` leaves values free.

    Returns:
        The sum over tokens, with gradient, and 1 where the gradient is cut off.
    """
    squared = (values - returns) ** 2
    if clip is None:
        return 0.5 * (squared * mask).sum(), torch.zeros_like(squared)
    near = old_values + (values - old_values).clamp(-clip, clip)
    near_squared = (near - returns) ** 2
    clipped = (near_squared > squared).float() * mask
    return 0.5 * (torch.max(squared, near_squared) * mask).sum(), clipped
