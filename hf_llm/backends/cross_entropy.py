"""Cross-entropy of a linear layer whose gradients are computed together with the loss, on any device.

Shapes: N tokens, H hidden, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.utils import is_torchdynamo_compiling

from hf_llm.models.inputs import check_classes
from hf_llm.models.losses import (
    chunk_rows,
    select_targets,
    summed_cross_entropy,
    target_logits,
    token_losses,
    transform_logits,
)
from hf_llm.models.operators import OPERATORS

from .plain import is_plain


DEVICES = ("cpu", "cuda", "mps", "npu", "xpu")


def _loss_and_gradients(
    hidden, weight, bias, labels, logit_scale, softcap, label_smoothing, z_loss, ignore_index, wants
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Summed cross-entropy of `hidden @ weight.T + bias`, a chunk of rows at a time, and its gradients for those of
    hidden, weight and bias that are wanted.

    They are made while a chunk's logits exist, as in Liger (https://arxiv.org/abs/2410.10989). Gradients of logits
    wait, in the dtype of `hidden`, until they are as many rows as the weight is wide: adding a product to the weight's
    gradient costs as much memory traffic for few rows as for many. Memory is that of one chunk, of these rows and of
    the gradients themselves.
    """
    vocabulary, size = weight.shape
    rows, classes = (chunk_rows(hidden.device, width) for width in (vocabulary, size))
    matrix, offset = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    grad_hidden = torch.empty_like(hidden) if wants[0] else None
    grad_weight = torch.empty_like(weight, dtype=torch.float32) if wants[1] else None
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants[2] else None
    total = hidden.new_zeros((), dtype=torch.float32)
    gathered = rows * math.ceil(size / rows) if wants[1] else rows
    buffer = hidden.new_empty(min(gathered, len(hidden)), vocabulary)
    scratch = hidden.new_empty(min(rows, len(hidden)), vocabulary, dtype=torch.float32)
    for start in range(0, len(hidden), gathered):
        states = hidden[start : start + gathered]
        grad = buffer[: len(states)]
        for chunk, target, raw in zip(
            states.split(rows), labels[start : start + gathered].split(rows), grad.split(rows), strict=True
        ):
            legal = target != ignore_index
            target = target.where(legal, 0)
            if offset is None:
                torch.mm(chunk, matrix.T, out=raw)
            else:
                torch.addmm(offset, chunk, matrix.T, out=raw)
            logits = transform_logits(scratch[: len(raw)].copy_(raw), logit_scale, softcap)
            slope = None if softcap is None else 1.0 - (logits / softcap).square()
            target_logit, peak = target_logits(logits, target, label_smoothing), logits.amax(-1, keepdim=True)
            slopes = logits.sub_(peak).exp_()  # in place: fresh memory costs a CPU more than the arithmetic
            mass = slopes.sum(-1, keepdim=True)
            lse = (mass.log() + peak)[:, 0]
            total += token_losses(lse, target_logit, z_loss).where(legal, 0.0).sum()
            if not any(wants):
                continue
            # d loss / d logits = softmax * (1 + 2 z lse) - (1 - s) onehot - s / V; 0 for labels that are ignored
            weights = legal.float()[:, None]
            slopes *= weights * (1 + 2 * z_loss * lse[:, None]) / mass
            if label_smoothing:
                slopes -= weights * (label_smoothing / vocabulary)
            slopes.scatter_add_(-1, target[:, None], weights * (label_smoothing - 1.0))
            if slope is not None:
                slopes *= slope
            if logit_scale is not None:
                slopes *= logit_scale
            raw.copy_(slopes)
        if wants[0]:
            torch.mm(grad, matrix, out=grad_hidden[start : start + gathered])
        if wants[1]:
            for part, columns in zip(grad_weight.split(classes), grad.split(classes, dim=1)):
                product = columns.T @ states
                part.copy_(product) if start == 0 else part.add_(product)
        if wants[2]:
            grad_bias += grad.sum(0, dtype=torch.float32)
    if wants[1] and not len(hidden):
        grad_weight.zero_()
    gradients = ((grad_hidden, hidden), (grad_weight, weight), (grad_bias, bias))
    return total, [None if grad is None else grad.to(of.dtype) for grad, of in gradients]


def _scale(grad: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """grad * factor, in place and in float32: a loss scale may be too large for the dtype of `grad`, a share of a
    batch too uneven."""
    if grad.dtype == torch.float32:
        return grad.mul_(factor)
    for part in grad.split(chunk_rows(grad.device, grad[:1].numel() or 1)):
        part.copy_(part.float() * factor)
    return grad


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss of `_loss_and_gradients`, whose gradients wait for the backward pass. It gives them away: one that
    comes after it (`retain_graph`) makes them again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, *options):
        total, ctx.gradients = _loss_and_gradients(hidden, weight, bias, labels, *options)
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.options = options
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = _loss_and_gradients(*ctx.saved_tensors, *ctx.options)
        return *(None if grad is None else _scale(grad, grad_output) for grad in gradients), *[None] * 7


@torch.library.custom_op("hf_llm::linear_cross_entropy", mutates_args=(), device_types="cpu")
def _compiled_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    logit_scale: float | None,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
    wants: Sequence[bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same in a graph, which cannot choose rows by itself; gradients that are not wanted are empty."""
    check_classes(labels, len(weight), ignore_index)
    states, chosen = select_targets(hidden, labels, ignore_index)
    options = (logit_scale, softcap, label_smoothing, z_loss, ignore_index, wants)
    total, gradients = _loss_and_gradients(states, weight, bias, chosen, *options)
    rows = (labels != ignore_index).nonzero()[:, 0]
    if wants[0] and len(rows) < len(labels):
        gradients[0] = torch.zeros_like(hidden).index_copy_(0, rows, gradients[0][: len(rows)])
    return total, *(hidden.new_empty(0) if grad is None else grad for grad in gradients)


@_compiled_cross_entropy.register_fake
def _(hidden, weight, bias, *options):
    wanted = zip((hidden, weight, bias), options[-1], strict=True)
    total = hidden.new_empty((), dtype=torch.float32)
    return total, *(torch.empty_like(of) if want else hidden.new_empty(0) for of, want in wanted)


def _save_gradients(ctx, inputs, output):
    ctx.wants = inputs[-1]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx, grad_output, *_):
    pairs = zip(ctx.saved_tensors, ctx.wants, strict=True)
    return *(_scale(grad.clone(), grad_output) if want else None for grad, want in pairs), *[None] * 7


_compiled_cross_entropy.register_autograd(_scale_gradients, setup_context=_save_gradients)


def is_readable(head: nn.Module) -> bool:
    """Whether reading `head.weight` gives what calling `head` computes; ZeRO-3 leaves no weight to read."""
    return type(head) is nn.Linear and is_plain(head) and head.weight.numel() == head.in_features * head.out_features


def fused_cross_entropy(
    hidden: torch.Tensor, head: nn.Module, labels: torch.LongTensor, *options: float | None
) -> torch.Tensor:
    """See `hf_llm.models.losses.summed_cross_entropy`. Reads the weight of a head that is a plain `nn.Linear`; another
    one (LoRA, `modules_to_save`, DTensor, ZeRO-3) is called."""
    if not is_readable(head):
        return summed_cross_entropy.plain(hidden, head, labels, *options)
    check_classes(labels, head.out_features, options[-1])
    parts = (hidden, head.weight, head.bias)
    wants = [torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts]
    if is_torchdynamo_compiling() and not torch.compiler.is_exporting() and hidden.device.type == "cpu":
        return _compiled_cross_entropy(*parts, labels, *options, wants)[0]
    return _LinearCrossEntropy.apply(*parts, labels, *options, wants)


def register() -> None:
    """Enter the fused loss for every type of device."""
    OPERATORS["summed_cross_entropy"] |= dict.fromkeys(DEVICES, fused_cross_entropy)
