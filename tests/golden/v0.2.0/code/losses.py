"""Losses: a cross-entropy that never holds all logits, router losses, and the losses of task heads.

Shapes: N tokens, H hidden, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_torchdynamo_compiling

from .checks import check_choice
from .inputs import check_classes
from .operators import cpu_operator, is_transformed
from .plain import is_plain
from .precision import cast_once


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# Logits held at a time, but for the least number of rows below: 4 MB of float32, which stays in a CPU's cache, and
# 128 MB, rows enough for the matrix products of a GPU (256 of 128k logits).
CHUNK_ELEMENTS, ACCELERATOR_CHUNK_ELEMENTS = 2**20, 2**25
# Kernels are chosen, and on a CPU built, for each number of rows that they meet; fewer rows than this read a large
# head for little work.
ROW_MULTIPLE = 64


def _chunk_rows(device: torch.device, width: int) -> int:
    """Rows of `width` numbers that are held at a time."""
    elements = CHUNK_ELEMENTS if device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    return max(ROW_MULTIPLE, elements // width)


def transform_logits(
    logits: torch.Tensor, logit_scale: float | None = None, softcap: float | None = None
) -> torch.Tensor:
    """What stands between head and softmax: a factor, then cap * tanh(logits / cap)."""
    if logit_scale is not None:
        logits = logits * logit_scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits


def _aims(logits, labels, label_smoothing):
    """What the softmax is to raise, (n,): the logits (n, V) of legal labels (n,), smoothed with all others."""
    aims = (1 - label_smoothing) * logits.gather(-1, labels[:, None])[:, 0]
    return aims + label_smoothing * logits.mean(-1) if label_smoothing else aims


def _token_losses(lse, aims, z_loss):
    """Losses (n,) from the logsumexp of the logits and what `_aims` gives, both (n,) float32."""
    return lse - aims + z_loss * lse.square() if z_loss else lse - aims


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
    rows, classes = (_chunk_rows(hidden.device, width) for width in (vocabulary, size))
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
            aims, peak = _aims(logits, target, label_smoothing), logits.amax(-1, keepdim=True)
            slopes = logits.sub_(peak).exp_()  # in place: fresh memory costs a CPU more than the arithmetic
            mass = slopes.sum(-1, keepdim=True)
            lse = (mass.log() + peak)[:, 0]
            total += _token_losses(lse, aims, z_loss).where(legal, 0.0).sum()
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


def select_targets(
    hidden: torch.Tensor, labels: torch.LongTensor, ignore_index: int = -100
) -> tuple[torch.Tensor, torch.LongTensor]:
    """hidden (n, H) and labels (n,) of targets, then a few rows of zeros without a label, up to n and to a multiple of
    ROW_MULTIPLE. All rows in a compiled graph, whose shapes do not depend on values."""
    if is_torchdynamo_compiling() or hidden.device.type == "meta":
        return hidden, labels
    rows = (labels != ignore_index).nonzero()[:, 0]
    if len(rows) == len(labels):
        return hidden, labels
    spare = min(-len(rows) % ROW_MULTIPLE, len(labels) - len(rows))
    targets = F.pad(labels[rows], (0, spare), value=ignore_index)
    return F.pad(hidden.index_select(0, rows), (0, 0, 0, spare)), targets


def _scale(grad: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """grad * factor, in place and in float32: a loss scale may be too large for the dtype of `grad`, a share of a
    batch too uneven."""
    if grad.dtype == torch.float32:
        return grad.mul_(factor)
    for part in grad.split(_chunk_rows(grad.device, grad[:1].numel() or 1)):
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


@cpu_operator(__name__, "linear_cross_entropy")
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


def _is_readable(head: nn.Module) -> bool:
    """Whether reading `head.weight` gives what calling `head` computes; ZeRO-3 leaves no weight to read."""
    return type(head) is nn.Linear and is_plain(head) and head.weight.numel() == head.in_features * head.out_features


def linear_cross_entropy(
    hidden: torch.Tensor,
    head: nn.Module,
    labels: torch.LongTensor,
    *,
    logit_scale: float | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    num_items_in_batch: torch.Tensor | int | None = None,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """
    Cross-entropy of `head(transform(hidden))` against `labels`, without holding all logits.

    hidden (..., H), labels (...) int64; positions with `ignore_index` count for nothing and are left out before the
    transform. head: the linear layer; its weight is read directly where it is plain, otherwise the head is called
    chunk by chunk (LoRA, `modules_to_save`, DTensor, ZeRO-3). label_smoothing as in torch; z_loss adds
    `z_loss * logsumexp(logits)^2` (https://arxiv.org/abs/2204.02311). Returns a float32 scalar: the mean over targets,
    or the sum divided by `num_items_in_batch`; 0 where there is no target. It has no second derivatives.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).to(hidden.device)
    if is_transformed():
        logits = transform_logits(head(hidden if transform is None else transform(hidden)), logit_scale, softcap)
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "ignore_index": ignore_index}
        return logits_cross_entropy(logits, labels, **options, num_items_in_batch=num_items_in_batch)
    if _is_readable(head):
        check_classes(labels, head.out_features, ignore_index)
    count = (labels != ignore_index).sum()
    hidden, labels = select_targets(hidden, labels, ignore_index)
    # cast once for all chunks, and a compiled operator sees no autocast
    hidden = cast_once(hidden if transform is None else transform(hidden))
    options = (logit_scale, softcap, label_smoothing, z_loss, ignore_index)
    if not _is_readable(head):
        total = _called_cross_entropy(hidden, head, labels, *options)
    else:
        parts = (hidden, head.weight, head.bias)
        wants = [torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts]
        if is_torchdynamo_compiling() and not torch.compiler.is_exporting() and hidden.device.type == "cpu":
            total, *_ = _compiled_cross_entropy(*parts, labels, *options, wants)
        else:
            total = _LinearCrossEntropy.apply(*parts, labels, *options, wants)
    if num_items_in_batch is None:
        return total / count.clamp(min=1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def _called_cross_entropy(hidden, head, labels, logit_scale, softcap, label_smoothing, z_loss, ignore_index):
    """The same through `head(...)`; a chunk's logits are made again in the backward pass."""

    def chunk_loss(chunk, target):
        logits = transform_logits(head(chunk).float(), logit_scale, softcap)
        check_classes(target, logits.shape[-1], ignore_index)  # a wrapped head may misstate its `out_features`
        legal = target != ignore_index
        loss = _token_losses(logits.logsumexp(-1), _aims(logits, target.where(legal, 0), label_smoothing), z_loss)
        return loss.where(legal, 0.0).sum()

    rows = _chunk_rows(hidden.device, getattr(head, "out_features", None) or 1)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, max(1, hidden.shape[0]), rows):  # without targets, one empty chunk: gradients of zero
        chunk, target = hidden[start : start + rows], labels[start : start + rows]
        total = total + checkpoint(chunk_loss, chunk, target, use_reentrant=False)
    return total


def logits_cross_entropy(
    logits: torch.Tensor,
    labels: torch.LongTensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The same loss from logits (..., V) that exist already."""
    logits, labels = logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1).to(logits.device)
    check_classes(labels, logits.shape[-1], ignore_index)
    legal = labels != ignore_index
    loss = _token_losses(logits.logsumexp(-1), _aims(logits, labels.where(legal, 0), label_smoothing), z_loss)
    total = loss.where(legal, 0.0).sum()
    if num_items_in_batch is None:
        return total / legal.sum().clamp(min=1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


def router_losses(
    router_logits: Sequence[torch.Tensor],
    top_k: int,
    is_real: torch.Tensor | None = None,
    row_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Load-balancing loss (https://arxiv.org/abs/2101.03961, equations 4 to 6, over the top-k choices and all layers) and
    router z-loss (https://arxiv.org/abs/2202.08906).

    router_logits: (batch * seq, experts) for each sparse layer; is_real (batch, seq) leaves padding out. Two float32
    scalars: over all tokens at once, as in transformers; or, with row_weights (batch,), the weighted sum of what each
    row gives by itself (https://arxiv.org/abs/2412.19437, equations 17 to 20), which is the same however the rows are
    divided into batches. Balance is no mean over tokens, so no other definition is.
    """
    logits = torch.stack([layer.float() for layer in router_logits])
    layers, tokens, experts = logits.shape
    rows = 1 if row_weights is None else len(row_weights)
    logits = logits.view(layers, rows, tokens // rows, experts)
    real = logits.new_ones(rows, tokens // rows) if is_real is None else is_real.reshape(rows, -1).to(logits)
    count = layers * real.sum(-1)  # (rows,)
    if row_weights is not None:
        count = count.clamp(min=1)  # a row of padding weighs nothing
    probabilities = logits.softmax(-1)
    chosen = torch.zeros_like(logits).scatter_(-1, probabilities.topk(top_k, dim=-1).indices, 1.0)
    share = (chosen * real[..., None]).sum((0, 2)) / count[:, None]  # (rows, experts)
    probability = (probabilities * real[..., None]).sum((0, 2)) / count[:, None]
    balance = experts * (share * probability).sum(-1)
    z = (logits.logsumexp(-1).square() * real).sum((0, 2)) / count
    if row_weights is None:
        return balance[0], z[0]
    return (row_weights * balance).sum(), (row_weights * z).sum()


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    Loss of a sequence or token classifier; logits (..., labels), labels (...) of classes, or (..., labels) of floats.

    problem_type: `regression`, `single_label_classification` or `multi_label_classification`; found from the labels
    if `None`, as in transformers. The sum is divided by `num_items_in_batch` where it is given, so that accumulated
    gradients are those of one large batch.
    """
    labels = labels.to(logits.device)
    if problem_type is None:
        if logits.shape[-1] == 1:
            problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            problem_type = "single_label_classification"
        else:
            problem_type = "multi_label_classification"
    check_choice("problem_type", problem_type, PROBLEM_TYPES)
    if problem_type == "single_label_classification":
        return logits_cross_entropy(logits, labels, num_items_in_batch=num_items_in_batch)
    if problem_type == "regression":
        loss = F.mse_loss(logits.reshape(labels.shape).float(), labels.float(), reduction="none")
    else:
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    if num_items_in_batch is None:
        return loss.mean()
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss.sum() / num_items_in_batch


def span_loss(
    start_logits: torch.Tensor, end_logits: torch.Tensor, start: torch.LongTensor, end: torch.LongTensor
) -> torch.Tensor:
    """Extractive question answering: logits (batch, seq), positions (batch,), ignored where beyond the text.

    A mean over the answers of the batch: `Trainer` counts no items without `labels`, so accumulated micro-batches give
    the gradients of one large batch only if none of their answers is ignored.
    """
    length = start_logits.shape[-1]
    losses = []
    for logits, position in ((start_logits, start), (end_logits, end)):
        position = position.reshape(-1).clamp(0, length).to(logits.device)
        losses.append(F.cross_entropy(logits.float(), position, ignore_index=length))
    return (losses[0] + losses[1]) / 2
