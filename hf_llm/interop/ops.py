"""Operations between two layouts of the same weights. Each is exactly reversible: no arithmetic, only moves."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


Tensors = list[torch.Tensor]
Convert = Callable[[Tensors, object], Tensors]


@dataclass(frozen=True)
class Op:
    """
    Two functions from and to lists of tensors in the order of a rule's names, and the configuration (ours) of the
    stack that the weights belong to.

    rows: the operation on outputs as rows, (out, n) or (out,), if it does no more than join and order them.
    per: the field that counts the native names: `{h}` in a name runs through 0 to that.
    """

    to_ours: Convert
    to_native: Convert
    rows: "Op | None" = None
    per: str | None = None

    def native_names(self, names: tuple[str, ...], config) -> tuple[str, ...]:
        """The native names of a rule, where how many there are depends on the configuration."""
        if self.per is None:
            return names
        return tuple(name.replace("{h}", str(h)) for name in names for h in range(getattr(config, self.per)))


def _of_rows(to_ours: Convert, to_native: Convert) -> Op:
    return Op(to_ours, to_native, rows=Op(to_ours, to_native))


def _same(tensors: Tensors, config) -> Tensors:
    return tensors


def _transpose(tensors: Tensors, config) -> Tensors:
    return [t.transpose(-1, -2) if t.ndim > 1 else t for t in tensors]


def _join(tensors: Tensors, config) -> Tensors:
    return [torch.cat(tensors)]


def _split_qkv(tensors: Tensors, config) -> Tensors:
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    return list(tensors[0].split([queries, keys, keys]))


def _split_groups(tensors: Tensors, config) -> Tensors:
    (fused,) = tensors
    groups, rest = config.num_key_value_heads, fused.shape[1:]
    per_group = fused.view(groups, config.num_attention_heads // groups + 2, config.head_dim, *rest)
    return [part.reshape(-1, *rest) for part in (per_group[:, :-2], per_group[:, -2:-1], per_group[:, -1:])]


def _join_groups(tensors: Tensors, config) -> Tensors:
    rest = tensors[0].shape[1:]
    parts = [t.view(config.num_key_value_heads, -1, config.head_dim, *rest) for t in tensors]
    return [torch.cat(parts, dim=1).reshape(-1, *rest)]


def _deinterleave(tensors: Tensors, config) -> Tensors:
    (native,) = tensors
    rows = native.transpose(-1, -2) if native.ndim == 3 else native
    return [torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)]


def _interleave(tensors: Tensors, config) -> Tensors:
    gate, up = tensors[0].chunk(2, dim=1)
    rows = torch.stack((gate, up), dim=2).flatten(1, 2)
    return [rows.transpose(-1, -2) if rows.ndim == 3 else rows]


# same layout, other name
rename = _of_rows(_same, _same)
# the two last dimensions change places: GPT-2's Conv1D (in, out), gpt-oss' experts (E, in, out)
transpose = Op(_transpose, _transpose, rows=rename)
# a leading dimension of 1 on the native side: BART's `final_logits_bias` (1, V)
unsqueeze = Op(
    lambda tensors, config: [t.squeeze(0) for t in tensors], lambda tensors, config: [t.unsqueeze(0) for t in tensors]
)
# q, k, v one after the other in one native matrix (or bias)
fused = _of_rows(_split_qkv, _join)
# the same as Conv1D
fused_transposed = Op(
    lambda tensors, config: _split_qkv(_transpose(tensors, config), config),
    lambda tensors, config: _transpose(_join(tensors, config), config),
    rows=fused,
)
# q, k, v of each key-value head together, [kv][n queries, k, v][d]: GPT-NeoX, Bloom, Falcon
fused_by_group = _of_rows(_split_groups, _join_groups)
# two matrices of equal height in one: Phi-3's `gate_up_proj`, ModernBERT's `Wi`
halves = _of_rows(lambda tensors, config: list(tensors[0].chunk(2)), _join)
# gpt-oss' experts: gate and up rows alternate, and matrices are transposed; ours (E, 2I, H) is gate then up
interleaved_halves = Op(_deinterleave, _interleave)


def per_head(heads: str) -> Op:
    """One native vector for each head (StableLM's norms, `{h}` in the name); ours is (heads, head_dim).

    heads: the field that counts them.
    """
    return Op(lambda tensors, config: [torch.stack(tensors)], lambda tensors, config: list(tensors[0]), per=heads)
