"""Position embeddings: added to the token embeddings, rotating queries and keys, or biasing the scores.

Three kinds, told apart by where they act:

    embedding   learned, sinusoidal     (batch, seq) -> (batch, seq, hidden), added to the token embeddings
    rotary      rope                    (batch, seq) -> cos, sin (batch, seq, rotary_dim), applied to queries and keys
    bias        alibi, relative_bias    -> (1, heads, q_len, kv_len), added to the attention scores

Biases depend on distances alone, so they are computed from indices in the row: inside a document (and after left
padding) index differences are position differences.
"""

import copy
import math

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .inputs import IdEmbedding
from .operators import operator
from .table import Table


class LearnedPositions(IdEmbedding):
    """A table of `position_offset + max_position_embeddings` vectors."""

    kind = "embedding"

    def __init__(self, config, size: int):
        length = config.max_position_embeddings + config.position_offset
        super().__init__(length, size, "position_ids", "max_position_embeddings", config.position_offset)


class SinusoidalPositions(nn.Module):
    """Fixed sines, then cosines (https://arxiv.org/abs/1706.03762), computed on the fly: no length is too long."""

    kind = "embedding"

    def __init__(self, config, size: int):
        super().__init__()
        self.size, self.offset = size, config.position_offset

    def forward(self, position_ids: torch.LongTensor) -> torch.Tensor:
        # float64: at position 2,000 a float32 angle is wrong by 1e-4
        precise = torch.float32 if position_ids.device.type == "mps" else torch.float64
        exponents = torch.arange(0, self.size, 2, device=position_ids.device, dtype=precise) / self.size
        angles = (position_ids + self.offset)[..., None].to(precise) / 10000.0**exponents
        return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., : self.size].float()


class RotaryEmbedding(nn.Module):
    """RoPE (https://arxiv.org/abs/2104.09864) with every scaling type of transformers.

    Where `rope_parameters` is nested by layer type, one such module is made for each. The frequencies stay float32
    whatever the model is cast to, so a bfloat16 model rotates as it did before it was saved.
    """

    kind = "rotary"

    def __init__(self, config, layer_type: str | None = None):
        super().__init__()
        if layer_type is not None:
            config = copy.copy(config)
            config.rope_parameters = config.rope_parameters[layer_type]
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        compute = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config, device=None, **kwargs) -> tuple[torch.Tensor, float]:
        """Inverse frequencies (rotary_dim / 2,) float32, and 1.0, the factor on cos and sin."""
        dim = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    def _apply(self, fn, recurse: bool = True):
        def keep_float32(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_float32, recurse)

    @dynamic_rope_update
    def forward(
        self, hidden_states: torch.Tensor, position_ids: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`position_ids` (batch, seq) -> cos, sin (batch, seq, rotary_dim) in the dtype of `hidden_states`."""
        angles = position_ids[..., None].float() * self.inv_freq.to(hidden_states.device)
        cos, sin = angles.cos(), angles.sin()
        if self.attention_scaling != 1.0:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        cos, sin = cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)


def for_heads(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (batch, seq, rotary_dim) as `apply_rotary` takes them, once for all layers: (batch, 1, seq,
    rotary_dim), the first half of sin negative."""
    half = sin[:, None, :, sin.shape[-1] // 2 :]
    return cos[:, None], torch.cat((-half, half), dim=-1)


def turn(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The rotation of all dimensions of states (batch, heads, seq, rotary_dim)."""
    return torch.addcmul(states * cos, states.roll(cos.shape[-1] // 2, -1), sin)


@operator
def rotate_halves(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates dimension i with i + rotary_dim / 2 of query and key (batch, heads, seq, rotary_dim)."""
    return turn(query, cos, sin), turn(key, cos, sin)


def apply_rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate the first `cos.shape[-1]` dimensions of query and key (batch, heads, seq, head_dim). cos, sin: those
    of `for_heads`.

    Halves (dimension i with i + d/2) or, `interleaved`, neighbours (2i with 2i + 1).
    """
    width = cos.shape[-1]
    if width < query.shape[-1]:
        rotated = apply_rotary(query[..., :width], key[..., :width], cos, sin, interleaved)
        rests = query[..., width:], key[..., width:]
        return tuple(torch.cat(parts, dim=-1) for parts in zip(rotated, rests))
    if interleaved:
        return _rotate_neighbours(query, cos, sin), _rotate_neighbours(key, cos, sin)
    return rotate_halves(query, key, cos, sin)


def _rotate_neighbours(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1] // 2
    first, second = states[..., 0::2], states[..., 1::2]
    cos, sin = cos[..., half:], sin[..., half:]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Slopes (heads,) float32: a geometric sequence, extended as in the paper when heads are not a power of two."""
    nearest = 2 ** math.ceil(math.log2(num_heads))
    slopes = 2.0 ** (-torch.arange(1, nearest + 1, dtype=torch.float32) * (8 / nearest))
    if nearest == num_heads:
        return slopes
    return torch.cat((slopes[1::2], slopes[0::2]))[:num_heads]


class AlibiBias(nn.Module):
    """ALiBi (https://arxiv.org/abs/2108.12409): -slope * distance; bidirectional stacks use the absolute distance."""

    kind = "bias"

    def __init__(self, config, bidirectional: bool):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = 1.0 if config.alibi_scale is None else config.alibi_scale
        self.dtype = getattr(config, "alibi_dtype", None)
        self.bidirectional = bidirectional

    def forward(self, distance: torch.LongTensor, key_positions: torch.LongTensor | None = None) -> torch.Tensor:
        """`distance` (q_len, kv_len) = key index - query index -> (1, heads, q_len, kv_len) float32.

        With `alibi_dtype`, slope * `key_positions` (batch or 1, kv_len) instead, which the softmax takes for the same,
        but for the rounding: (batch or 1, heads, q_len, kv_len) float32.
        """
        slopes = alibi_slopes(self.num_heads).to(distance.device)
        if self.dtype is not None:
            rounded = slopes.to(getattr(torch, self.dtype))[:, None] * key_positions[:, None]  # (batch, heads, kv_len)
            return (rounded.float() * self.scale)[:, :, None].expand(-1, -1, len(distance), -1)
        slopes = slopes * self.scale
        distance = -distance.abs() if self.bidirectional else distance
        return (slopes[:, None, None] * distance)[None]


class RelativeBias(nn.Module):
    """T5's bucketed relative position bias (https://arxiv.org/abs/1910.10683)."""

    kind = "bias"

    def __init__(self, config, bidirectional: bool):
        super().__init__()
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.bidirectional = bidirectional
        self.relative_attention_bias = nn.Embedding(self.num_buckets, config.num_attention_heads)

    def buckets(self, distance: torch.LongTensor) -> torch.LongTensor:
        """Half of the buckets hold exact distances, the other half logarithmically growing ones."""
        num_buckets, offset = self.num_buckets, 0
        if self.bidirectional:
            num_buckets //= 2
            offset = (distance > 0).long() * num_buckets
            distance = distance.abs()
        else:
            distance = -distance.clamp(max=0)
        exact = num_buckets // 2
        log_ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (log_ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
        return offset + torch.where(distance < exact, distance, far)

    def forward(self, distance: torch.LongTensor, key_positions: torch.LongTensor | None = None) -> torch.Tensor:
        """`distance` (q_len, kv_len) = key index - query index -> (1, heads, q_len, kv_len)."""
        return self.relative_attention_bias(self.buckets(distance)).permute(2, 0, 1)[None]


class NoPositions:
    """No position embedding (https://arxiv.org/abs/2305.19466)."""

    kind = "none"


POSITIONS = Table(
    "position_embedding",
    rope=RotaryEmbedding,
    learned=LearnedPositions,
    sinusoidal=SinusoidalPositions,
    alibi=AlibiBias,
    relative_bias=RelativeBias,
    none=NoPositions,
)
