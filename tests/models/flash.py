"""A stand-in for the flash-attention kernels on CPU: it computes what they compute, one segment at a time, checks what
they demand of their arguments, and writes down each call."""

from dataclasses import dataclass, field

import torch


def _attend(query, key, value, causal, window_size, softmax_scale, softcap, sinks):
    """query (Q, H, D), key and value (S, K, D) -> (Q, H, D); masks are aligned at the end of both sequences."""
    q_length, heads, _ = query.shape
    k_length, kv_heads, _ = key.shape
    if k_length == 0:
        return torch.zeros_like(query)
    key, value = (states.repeat_interleave(heads // kv_heads, dim=1) for states in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(k_length)[None, :] - torch.arange(q_length)[:, None] - (k_length - q_length)
    left, right = window_size[0], 0 if causal else window_size[1]
    seen = torch.ones_like(distance, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, q_length, 1)), dim=-1)
    weights = scores.softmax(-1).nan_to_num(0.0)[..., :k_length]
    return torch.einsum("hqk,khd->qhd", weights, value)


@dataclass
class FlashStandIn:
    """The kernels of one version, and the calls they were given."""

    calls: list[dict] = field(default_factory=list)

    def varlen(self, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        assert q.ndim == k.ndim == v.ndim == 3
        lengths = []
        for states, cumulative, longest in ((q, cu_seqlens_q, max_seqlen_q), (k, cu_seqlens_k, max_seqlen_k)):
            assert cumulative.dtype == torch.int32 and cumulative[0] == 0 and cumulative[-1] == len(states)
            assert isinstance(longest, int) and longest == int(cumulative.diff().max())
            lengths.append(cumulative.diff().tolist())
        assert len(lengths[0]) == len(lengths[1])
        self.calls.append({"kernel": "varlen", "q_lengths": lengths[0], "k_lengths": lengths[1], **options})
        rows = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]))
        return torch.cat([_attend(*row, **_kernel_options(options, q)) for row in rows])

    def dense(self, q, k, v, **options):
        assert q.ndim == k.ndim == v.ndim == 4
        self.calls.append({"kernel": "dense", **options})
        return torch.stack([_attend(*row, **_kernel_options(options, q)) for row in zip(q, k, v)])

    def version_2(self):
        """flash_attn_func and flash_attn_varlen_func with the signatures of flash-attn 2."""

        def dense(
            q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
            deterministic=False,
        ):  # fmt: skip
            return self.dense(
                q, k, v, softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap
            )

        def varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
            causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False,
        ):  # fmt: skip
            return self.varlen(
                q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
            )  # fmt: skip

        return dense, varlen

    def version_3(self):
        """The same with the signatures of the flash-attn 3 kernels that know attention sinks."""

        def dense(
            q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False,
            s_aux=None,
        ):  # fmt: skip
            return self.dense(
                q,
                k,
                v,
                softmax_scale=softmax_scale,
                causal=causal,
                window_size=window_size,
                softcap=softcap,
                s_aux=s_aux,
            )

        def varlen(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False,
            window_size=(-1, -1), softcap=0.0, deterministic=False, s_aux=None,
        ):  # fmt: skip
            return self.varlen(
                q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap, s_aux=s_aux,
            )  # fmt: skip

        return dense, varlen


def _kernel_options(options, q):
    scale = options["softmax_scale"]
    return {
        "causal": options["causal"],
        "window_size": options["window_size"],
        "softmax_scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "softcap": options["softcap"],
        "sinks": options.get("s_aux"),
    }


def install(monkeypatch) -> FlashStandIn:
    """Let transformers find the stand-in wherever it looks for flash attention; returns its record."""
    from transformers import PreTrainedModel, modeling_flash_attention_utils, modeling_utils

    stand_in = FlashStandIn()

    def lazy_imports(implementation, *args, **kwargs):
        dense, varlen = stand_in.version_2() if implementation.endswith("2") else stand_in.version_3()
        utilities = modeling_flash_attention_utils
        return dense, varlen, None, utilities._pad_input, utilities._unpad_input

    for state in (
        "_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn", "_unpad_fn",
        "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn",
    ):  # fmt: skip
        monkeypatch.setattr(modeling_flash_attention_utils, state, None, raising=False)  # not every version has all
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lazy_imports)
    monkeypatch.setattr(modeling_utils, "is_kernels_available", lambda *args, **kwargs: False)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda self, *args, **kwargs: True)
    return stand_in
