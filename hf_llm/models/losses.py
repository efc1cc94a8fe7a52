"""Losses: a cross-entropy that never holds all logits, router losses, and the losses of task heads.

Shapes: N tokens, H hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_torchdynamo_compiling

from .checks import check_choice
from .inputs import check_classes
from .operators import cast_once, is_transformed, operator


PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# Logits held at a time, but for the least number of rows below: 4 MB of float32, which stays in a CPU's cache, and
# 128 MB, rows enough for the matrix products of a GPU (256 of 128k logits).
CHUNK_ELEMENTS, ACCELERATOR_CHUNK_ELEMENTS = 2**20, 2**25
# Kernels are chosen, and on a CPU built, for each number of rows that they meet; fewer rows than this read a large
# head for little work.
ROW_MULTIPLE = 64


def chunk_rows(device: torch.device, width: int) -> int:
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


def target_logits(logits: torch.Tensor, labels: torch.LongTensor, label_smoothing: float) -> torch.Tensor:
    """The logits (n, V) of labels (n,), smoothed with all others: (n,)."""
    target = (1 - label_smoothing) * logits.gather(-1, labels[:, None])[:, 0]
    return target + label_smoothing * logits.mean(-1) if label_smoothing else target


def token_losses(lse: torch.Tensor, target: torch.Tensor, z_loss: float) -> torch.Tensor:
    """Losses (n,) from the logsumexp of the logits and `target_logits`, both (n,) float32."""
    return lse - target + z_loss * lse.square() if z_loss else lse - target


def _sum_of_losses(logits, labels, label_smoothing, z_loss, ignore_index) -> torch.Tensor:
    check_classes(labels, logits.shape[-1], ignore_index)
    legal = labels != ignore_index
    target = target_logits(logits, labels.where(legal, 0), label_smoothing)
    return token_losses(logits.logsumexp(-1), target, z_loss).where(legal, 0.0).sum()


def _mean(
    total: torch.Tensor, count: torch.Tensor | None, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """total / num_items_in_batch; by `count` where that is not given."""
    if num_items_in_batch is None:
        return total / count.clamp(min=1)
    if isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


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
    transform. head: the linear layer, or what an adapter has put in its place; it is called for a chunk of rows at a
    time (a backend may read its weight instead). label_smoothing as in torch; z_loss adds
    `z_loss * logsumexp(logits)^2` (https://arxiv.org/abs/2204.02311). Returns a float32 scalar: the mean over targets,
    or the sum divided by `num_items_in_batch`; 0 where there is no target. A backend's form has no second derivatives.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).to(hidden.device)
    if is_transformed():
        logits = transform_logits(head(hidden if transform is None else transform(hidden)), logit_scale, softcap)
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "ignore_index": ignore_index}
        return logits_cross_entropy(logits, labels, **options, num_items_in_batch=num_items_in_batch)
    count = (labels != ignore_index).sum()
    hidden, labels = select_targets(hidden, labels, ignore_index)
    # cast once for all chunks, and a compiled operator sees no autocast
    hidden = cast_once(hidden if transform is None else transform(hidden))
    total = summed_cross_entropy(hidden, head, labels, logit_scale, softcap, label_smoothing, z_loss, ignore_index)
    return _mean(total, count, num_items_in_batch)


@operator
def summed_cross_entropy(
    hidden: torch.Tensor,
    head: nn.Module,
    labels: torch.LongTensor,
    logit_scale: float | None,
    softcap: float | None,
    label_smoothing: float,
    z_loss: float,
    ignore_index: int,
) -> torch.Tensor:
    """The sum that `linear_cross_entropy` divides, of hidden (n, H) and labels (n,). A chunk's logits are computed
    again in the backward pass."""

    def chunk_loss(chunk, target):
        logits = transform_logits(head(chunk).float(), logit_scale, softcap)
        return _sum_of_losses(logits, target, label_smoothing, z_loss, ignore_index)

    rows = chunk_rows(hidden.device, getattr(head, "out_features", None) or 1)
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
    total = _sum_of_losses(logits, labels, label_smoothing, z_loss, ignore_index)
    return _mean(total, (labels != ignore_index).sum(), num_items_in_batch)


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
    device = router_logits[0].device  # layers may be on several
    logits = torch.stack([layer.to(device).float() for layer in router_logits])
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
    return loss.mean() if num_items_in_batch is None else _mean(loss.sum(), None, num_items_in_batch)


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
