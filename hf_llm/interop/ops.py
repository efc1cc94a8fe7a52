"""Operations between two layouts of the same weights. Each is exactly reversible: no arithmetic, only moves.

`to_ours` and `to_native` take and return lists of tensors in the order of a rule's names, and the configuration (ours)
of the stack that the weights belong to.
"""

from dataclasses import dataclass

import torch


class Op:
    """Same layout, other name."""

    def native_names(self, names: tuple[str, ...], config) -> tuple[str, ...]:
        """The native names of a rule, where how many there are depends on the configuration."""
        return names

    def to_ours(self, tensors: list[torch.Tensor], config) -> list[torch.Tensor]:
        return tensors

    def to_native(self, tensors: list[torch.Tensor], config) -> list[torch.Tensor]:
        return tensors

    def of_rows(self) -> "Op | None":
        """The operation on outputs as rows, (out, n) or (out,), if it does no more than join and order them."""
        return None


class Transpose(Op):
    """The two last dimensions change places: GPT-2's Conv1D (in, out), gpt-oss' experts (E, in, out)."""

    def to_ours(self, tensors, config):
        return [t.transpose(-1, -2) if t.ndim > 1 else t for t in tensors]

    to_native = to_ours


@dataclass(frozen=True)
class Unsqueeze(Op):
    """A leading dimension of 1 on the native side (BART's `final_logits_bias` (1, V))."""

    def to_ours(self, tensors, config):
        return [t.squeeze(0) for t in tensors]

    def to_native(self, tensors, config):
        return [t.unsqueeze(0) for t in tensors]


def _head_counts(config) -> tuple[int, int, int]:
    return config.num_attention_heads, config.num_key_value_heads, config.head_dim


@dataclass(frozen=True)
class Fused(Op):
    """q, k, v one after the other in one native matrix (or bias). `transposed`: as GPT-2's Conv1D."""

    transposed: bool = False

    def to_ours(self, tensors, config):
        (fused,) = tensors
        heads, kv_heads, dim = _head_counts(config)
        fused = fused.transpose(0, 1) if self.transposed and fused.ndim > 1 else fused
        return list(fused.split([heads * dim, kv_heads * dim, kv_heads * dim]))

    def of_rows(self):
        return Fused()

    def to_native(self, tensors, config):
        fused = torch.cat(tensors)
        return [fused.transpose(0, 1) if self.transposed and fused.ndim > 1 else fused]


class FusedByGroup(Op):
    """q, k, v of each key-value head together, [kv][n queries, k, v][d]: GPT-NeoX, Bloom, Falcon."""

    def to_ours(self, tensors, config):
        (fused,) = tensors
        heads, kv_heads, dim = _head_counts(config)
        per_group = fused.view(kv_heads, heads // kv_heads + 2, dim, *fused.shape[1:])
        parts = per_group[:, :-2], per_group[:, -2:-1], per_group[:, -1:]
        return [part.reshape(-1, *fused.shape[1:]) for part in parts]

    def of_rows(self):
        return self

    def to_native(self, tensors, config):
        heads, kv_heads, dim = _head_counts(config)
        rest = tensors[0].shape[1:]
        parts = [t.view(kv_heads, -1, dim, *rest) for t in tensors]
        return [torch.cat(parts, dim=1).reshape(-1, *rest)]


class Halves(Op):
    """Two matrices of equal height in one: Phi-3's `gate_up_proj`, ModernBERT's `Wi`."""

    def to_ours(self, tensors, config):
        return list(tensors[0].chunk(2))

    def of_rows(self):
        return self

    def to_native(self, tensors, config):
        return [torch.cat(tensors)]


class InterleavedHalves(Op):
    """gpt-oss' experts: gate and up rows alternate, and matrices are transposed. Ours (E, 2I, H) is gate then up."""

    def to_ours(self, tensors, config):
        (native,) = tensors
        rows = native.transpose(-1, -2) if native.ndim == 3 else native
        return [torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)]

    def to_native(self, tensors, config):
        gate, up = tensors[0].chunk(2, dim=1)
        rows = torch.stack((gate, up), dim=2).flatten(1, 2)
        return [rows.transpose(-1, -2) if rows.ndim == 3 else rows]


@dataclass(frozen=True)
class PerHead(Op):
    """One native vector for each head (StableLM's norms, `{h}` in the name); ours is (heads, head_dim).

    heads: the field that counts them.
    """

    heads: str

    def native_names(self, names, config):
        return tuple(name.replace("{h}", str(h)) for name in names for h in range(getattr(config, self.heads)))

    def to_ours(self, tensors, config):
        return [torch.stack(tensors)]

    def to_native(self, tensors, config):
        return list(tensors[0])


rename = Op()
transpose = Transpose()
unsqueeze = Unsqueeze()
fused = Fused()
fused_transposed = Fused(transposed=True)
fused_by_group = FusedByGroup()
halves = Halves()
interleaved_halves = InterleavedHalves()
