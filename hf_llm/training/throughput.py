"""Floating-point operations: what a model needs per token, and what the machine could do at most."""

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from .optimizers import parameter_roles


# Dense bfloat16 tensor-core peaks without sparsity, FLOP/s, from the vendors' data sheets. The first name that occurs
# in torch.cuda.get_device_name() counts, so longer names come first.
GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A40": 149.7e12,
    "A6000": 154.8e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}


def times_run(model: nn.Module) -> Callable[[str], int]:
    """How often a forward pass runs the module or parameter of a name: layers that stand for several (`layer_sharing`)
    run more than once."""
    times = {}
    for name, module in model.named_modules(remove_duplicate=False):
        sharing = getattr(getattr(module, "config", None), "layer_sharing", None)
        if sharing and isinstance(getattr(module, "layers", None), nn.ModuleList):
            times |= {f"{name}.layers.{i}.".removeprefix("."): count for i, count in Counter(sharing).items()}
    return lambda name: next((count for layer, count in times.items() if f"{name}.".startswith(layer)), 1)


def flops_per_token(model: nn.Module, row_length: float) -> float:
    """Training FLOPs per token: 6 per active weight that multiplies, and 12 x width x length per attention layer.

    The convention of PaLM (https://arxiv.org/abs/2204.02311, appendix B): forward and backward, no credit for causal
    masks or recomputation. Weights count as often as they are run: of a mixture of experts the chosen share, of a
    layer that stands for several once for each. A tied or untied head counts once; embedding look-ups are free. For an
    encoder-decoder, tokens of both sides count alike, and weights that its halves share count in both.

    Args:
        model: a `PreTrainedModel`.
        row_length: tokens per row, or of the documents in it where these are isolated.
    """
    text_config = model.config.get_text_config(decoder=True)
    experts = getattr(text_config, "num_experts", None)
    chosen = (getattr(text_config, "num_experts_per_tok", None) or 0) / experts if experts else 1.0

    roles, times, weights = parameter_roles(model), times_run(model), 0.0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if roles[parameter] not in ("embedding", "vector"):
            share = chosen if roles[parameter] == "experts" else 1.0
            weights += parameter.numel() * share * times(name)
    head = model.get_output_embeddings()
    if head is not None:
        weights += head.weight.numel()

    layers = text_config.num_hidden_layers
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    if getattr(text_config, "qk_nope_head_dim", None):  # latent attention: queries and values of their own widths
        head_dim = (text_config.qk_nope_head_dim + text_config.qk_rope_head_dim + text_config.v_head_dim) / 2
    width = text_config.num_attention_heads * head_dim
    if getattr(model.config, "is_encoder_decoder", False):
        # a token passes one of the two stacks: half the weights; a decoder layer attends twice, an encoder layer once
        return 6 * (weights / 2) + 12 * 1.5 * layers * width * row_length
    return 6 * weights + 12 * layers * width * row_length


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of one process's device: from `GPU_PEAKS`, or measured by a short matmul on a CPU.

    Returns None for an accelerator that is not in the table.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for key, peak in GPU_PEAKS.items() if key in name), None)
    if device.type == "cpu":
        return _measured_peak(dtype)
    return None


def _measured_peak(dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the best of several square matmuls within `seconds`."""
    a = torch.ones(size, size, dtype=dtype)
    b = torch.ones(size, size, dtype=dtype)
    out = a @ b  # warm up
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
