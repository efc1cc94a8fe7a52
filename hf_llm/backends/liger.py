"""Liger's Triton kernels (https://arxiv.org/abs/2410.10989) on a GPU, where the package `liger-kernel` is installed:
RMSNorm, rotation, SwiGLU and GeGLU, and the cross-entropy of a linear layer.

Inside `torch.compile`, which fuses these by itself, under torch.func and in float64 the plain forms run.
"""

import functools
import importlib.util
from types import ModuleType

import torch
from torch import nn

from hf_llm.models.feedforward import gate
from hf_llm.models.norms import rms_norm
from hf_llm.models.operators import OPERATORS, values_are_known
from hf_llm.models.positions import rotate_halves

from ..deferred import when_imported
from .cross_entropy import fused_cross_entropy, is_readable


MODEL_TYPES = ("hf_llm_encoder", "hf_llm_decoder", "hf_llm_encoder_decoder")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Liger's activations by the class names of torch's and transformers' modules
SILU, GELU_TANH = ("SiLU", "SiLUActivation"), ("GELUTanh", "NewGELUActivation")


@functools.cache
def _kernels() -> ModuleType:
    import liger_kernel.ops

    return liger_kernel.ops


def _may_run(states: torch.Tensor) -> bool:
    return states.dtype in DTYPES and states.numel() > 0 and values_are_known() and not torch.jit.is_tracing()


def liger_rms_norm(states: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """See `hf_llm.models.norms.rms_norm`."""
    if scale.ndim > 1 or not _may_run(states):
        return rms_norm.plain(states, scale, eps)
    # "gemma": all in float32, as in torch; a gradient that is written in place may still be read by a residual
    return _kernels().LigerRMSNormFunction.apply(states, scale, eps, 0.0, "gemma", False)


def liger_rotate_halves(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `hf_llm.models.positions.rotate_halves`. Liger reads the first half of cos and sin, sin without a sign,
    and computes in their dtype."""
    if not _may_run(query):
        return rotate_halves.plain(query, key, cos, sin)
    return _kernels().LigerRopeFunction.apply(query, key, cos[:, 0].float(), -sin[:, 0].float())


def liger_gate(gate_states: torch.Tensor, up_states: torch.Tensor, act_fn: nn.Module) -> torch.Tensor:
    """See `hf_llm.models.feedforward.gate`."""
    name = type(act_fn).__name__
    if not _may_run(gate_states) or name not in (*SILU, *GELU_TANH):
        return gate.plain(gate_states, up_states, act_fn)
    kernels = _kernels()
    function = kernels.LigerSiLUMulFunction if name in SILU else kernels.LigerGELUMulFunction
    return function.apply(gate_states, up_states)


def liger_cross_entropy(
    hidden: torch.Tensor,
    head: nn.Module,
    labels: torch.LongTensor,
    logit_scale: float | None,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
) -> torch.Tensor:
    """See `hf_llm.models.losses.summed_cross_entropy`. Where Liger has no such loss, that of this package runs."""
    scales_a_bias = logit_scale is not None and head.bias is not None
    if not _may_run(hidden) or not is_readable(head) or scales_a_bias:
        options = (logit_scale, softcap, label_smoothing, z_loss, ignore_index)
        return fused_cross_entropy(hidden, head, labels, *options)
    if logit_scale is not None:
        hidden = hidden * logit_scale
    weight, bias = (None if part is None else part.to(hidden.dtype) for part in (head.weight, head.bias))
    outputs = _kernels().LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, labels, bias, None, ignore_index, z_loss, label_smoothing, "sum", softcap, False, torch.float32
    )
    return outputs[0]


FORMS = {
    "rms_norm": liger_rms_norm,
    "rotate_halves": liger_rotate_halves,
    "gate": liger_gate,
    "summed_cross_entropy": liger_cross_entropy,
}


def apply_to_hf_llm(
    rope: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    geglu: bool = True,
    fused_linear_cross_entropy: bool = True,
    model: nn.Module | None = None,
) -> None:
    """What Trainer calls for `use_liger_kernel=True` with `liger_kernel_config` as arguments: enters the kernels that
    are wanted for GPUs, and removes the others. Operators are those of all models, not of one."""
    wanted = {
        "rms_norm": rms_norm,
        "rotate_halves": rope,
        "gate": swiglu or geglu,
        "summed_cross_entropy": fused_linear_cross_entropy,
    }
    for name, form in FORMS.items():
        if wanted[name]:
            OPERATORS[name]["cuda"] = form
        elif OPERATORS[name].get("cuda") is form:
            del OPERATORS[name]["cuda"]


def register() -> None:
    """Enter the kernels for GPUs if Liger is installed."""
    if importlib.util.find_spec("liger_kernel") is not None:
        apply_to_hf_llm()


def _add_model_types(liger: ModuleType) -> None:
    liger.MODEL_TYPE_TO_APPLY_LIGER_FN.update(dict.fromkeys(MODEL_TYPES, apply_to_hf_llm))


# whatever HF_LLM_BACKENDS says: `use_liger_kernel` asks by itself
when_imported("liger_kernel.transformers.monkey_patch", _add_model_types)
