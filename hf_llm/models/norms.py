"""Normalisation layers.

Shapes: (..., size) -> (..., size). Statistics are taken over the last dimension in float32.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .operators import operator
from .table import Table


class LayerNorm(nn.Module):
    """LayerNorm (https://arxiv.org/abs/1607.06450). `size` may be (heads, head_dim): a weight for each head."""

    weight_init = 1.0
    has_weight = True

    def __init__(self, size: int | tuple[int, ...], eps: float = 1e-6, bias: bool = False, affine: bool = True):
        super().__init__()
        size = (size,) if isinstance(size, int) else tuple(size)
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.empty(size)) if affine else None
        self.bias = nn.Parameter(torch.empty(size)) if affine and bias else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if len(self.size) == 1 or self.weight is None:
            return F.layer_norm(hidden_states, self.size[-1:], self.weight, self.bias, self.eps)
        normed = F.layer_norm(hidden_states, self.size[-1:], eps=self.eps) * self.weight
        return normed if self.bias is None else normed + self.bias

    def extra_repr(self) -> str:
        return f"{self.size}, eps={self.eps}, affine={self.weight is not None}, bias={self.bias is not None}"


@operator
def rms_norm(states: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """`F.rms_norm` over the last dimension, in the dtype of `states`. scale: (size,), or (heads, size)."""
    if scale.dtype != states.dtype:  # no kernel takes two dtypes, which autocast gives to qk norms
        scale = scale.to(states.dtype)
    if scale.ndim > 1:
        return F.rms_norm(states, scale.shape[-1:], eps=eps) * scale
    return F.rms_norm(states, scale.shape, scale, eps)


class RMSNorm(LayerNorm):
    """RMSNorm (https://arxiv.org/abs/1910.07467). Has no bias."""

    def __init__(self, size: int | tuple[int, ...], eps: float = 1e-6, bias: bool = False, affine: bool = True):
        super().__init__(size, eps, bias=False, affine=affine)

    def scale(self) -> torch.Tensor:
        """What normalised states are multiplied with."""
        return self.weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.scale(), self.eps)


class UnitOffsetRMSNorm(RMSNorm):
    """RMSNorm whose weight is stored as w and applied as 1 + w (Gemma); w starts at zero."""

    weight_init = 0.0

    def scale(self) -> torch.Tensor:
        return 1.0 + self.weight


class NonAffineLayerNorm(LayerNorm):
    """LayerNorm without weights (OLMo)."""

    has_weight = False

    def __init__(self, size, eps: float = 1e-6, bias: bool = False):
        super().__init__(size, eps, affine=False)


class NonAffineRMSNorm(RMSNorm):
    """RMSNorm without weights (nanochat)."""

    has_weight = False

    def __init__(self, size, eps: float = 1e-6, bias: bool = False):
        super().__init__(size, eps, affine=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_states, self.size[-1:], eps=self.eps)


NORMS = Table(
    "norm_type",
    layernorm=LayerNorm,
    rmsnorm=RMSNorm,
    rmsnorm_unit_offset=UnitOffsetRMSNorm,
    layernorm_non_affine=NonAffineLayerNorm,
    rmsnorm_non_affine=NonAffineRMSNorm,
)


def get_norm(config, size: int | tuple[int, ...] | None = None) -> LayerNorm:
    """The configuration's norm over `size` (default `hidden_size`)."""
    return NORMS[config.norm_type](config.hidden_size if size is None else size, config.norm_eps, config.norm_bias)


def get_qk_norm(config, num_heads: int) -> LayerNorm | None:
    """The norm of queries or keys, or `None`; `num_heads` is their number of heads."""
    if config.qk_norm is None:
        return None
    size = {
        "head": config.head_dim,
        "per_head": (num_heads, config.head_dim),
        "full": num_heads * config.head_dim,
    }[config.qk_norm]
    bias = config.norm_bias if config.qk_norm_bias is None else config.qk_norm_bias
    return NORMS[config.norm_type](size, config.norm_eps, bias)
