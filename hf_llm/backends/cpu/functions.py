"""RMSNorm, rotation and feed-forward on a CPU, in fewer passes over memory than torch's own operations take."""

import torch
from torch.nn import functional as F

from hf_llm.models.feedforward import FeedForward
from hf_llm.models.norms import rms_norm
from hf_llm.models.operators import values_are_known
from hf_llm.models.positions import turn

from ..plain import all_plain_on_cpu


LARGE = 2**16  # elements of a tensor that leaves a core's cache when others follow
ROWS = 1024  # tokens at most that are widened at a time where no backward pass will come


def runs_plainly(states: torch.Tensor) -> bool:
    """Whether operations run at once: not in graphs (torch's compiler fuses by itself, traces and exports hold no
    Python), under torch.func or forward-mode differentiation, or in float64, in which gradients are checked."""
    return states.dtype != torch.float64 and values_are_known() and not torch.jit.is_tracing()


def needs_gradients(*tensors: torch.Tensor) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_large(states: torch.Tensor) -> bool:
    """Whether new memory for a tensor of this size costs more than the arithmetic."""
    return runs_plainly(states) and states.numel() >= LARGE


def norm_constants(scale: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What `normalise` takes of a weight (..., n): weight * sqrt(n) and sqrt(n * eps), float32."""
    size = scale.shape[-1]
    return scale.float() * size**0.5, torch.scalar_tensor((size * eps) ** 0.5, dtype=torch.float32, device="cpu")


def normalise(states: torch.Tensor, factor: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """RMSNorm in the fewest passes over memory, and the fewest kernels, that torch has on a CPU:
    states / hypot(|states|, sqrt(n * eps)) * (weight * sqrt(n)). No kernel is given a number, of which it would make a
    tensor; that takes longer than a short row."""
    precise = states.float()
    norm = torch.hypot(torch.linalg.vector_norm(precise, dim=-1, keepdim=True), floor)
    if precise is states:
        return precise.div(norm).mul_(factor)
    return precise.div_(norm).mul_(factor).to(states.dtype)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with a backward pass of its own, which keeps its inputs alone. torch has no kernel for it on a CPU: each
    of its operations makes float32 states, has a backward pass and keeps states for it."""

    @staticmethod
    def forward(ctx, states, scale, eps):
        ctx.save_for_backward(states, scale)
        ctx.eps = eps
        return normalise(states, *norm_constants(scale, eps))

    @staticmethod
    def backward(ctx, grad_output):
        states, scale = ctx.saved_tensors
        wants = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # for a second derivative
            output = F.rms_norm(states, scale.shape, scale.to(states.dtype), ctx.eps)
            wanted = [tensor for tensor, want in zip((states, scale), wants, strict=True) if want]
            gradients = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=True))
            return *(next(gradients) if want else None for want in wants), None
        size = states.shape[-1]
        precise, grad = states.reshape(-1, size).float(), grad_output.reshape(-1, size).float()
        inverse = torch.linalg.vector_norm(precise, dim=-1).square_().div_(size).add_(ctx.eps).rsqrt_()
        product, scale32 = grad * precise, scale.float()
        grad_scale = torch.mv(product.T, inverse).to(scale.dtype) if wants[1] else None
        if not wants[0]:
            return None, grad_scale, None
        # d states = inverse * (scale * d output - states * inverse^2 * mean(states * scale * d output))
        mean = torch.mv(product, scale32).div_(-size).mul_(inverse.pow(3))
        grad = torch.mul(grad, scale32, out=product).mul_(inverse[:, None]).addcmul_(precise, mean[:, None])
        return grad.to(states.dtype).view_as(states), grad_scale, None


def cpu_rms_norm(states: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """See `hf_llm.models.norms.rms_norm`."""
    if scale.ndim > 1 or not runs_plainly(states):
        return rms_norm.plain(states, scale, eps)
    if needs_gradients(states, scale):
        return _RMSNorm.apply(states, scale, eps)
    return normalise(states, *norm_constants(scale, eps))


def _turn_in_place(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1] // 2
    turned = states * cos
    turned[..., :half].addcmul_(states[..., half:], sin[..., :half])
    turned[..., half:].addcmul_(states[..., :half], sin[..., half:])
    return turned


class _Turn(torch.autograd.Function):
    """Halves rotated in float32, and turned back in the backward pass, in fewer passes over memory than the
    operations and their own backward passes take. Both halves of cos are the same, and those of sin but for the
    sign, as `for_heads` makes them."""

    @staticmethod
    def forward(ctx, states, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _turn_in_place(states.float(), cos, sin).to(states.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        cos, sin = ctx.saved_tensors
        return _Turn.apply(grad_output, cos, -sin), None, None


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    if needs_gradients(states) and runs_plainly(states):
        return _Turn.apply(states, cos, sin)
    if states.dtype == cos.dtype == torch.float32 and is_large(states):
        return _turn_in_place(states, cos, sin)
    return turn(states, cos, sin)


def cpu_rotate_halves(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `hf_llm.models.positions.rotate_halves`."""
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


def cpu_feed_forward(hidden_states: torch.Tensor, mlp: FeedForward) -> torch.Tensor:
    """See `hf_llm.models.feedforward.feed_forward`. Wide states of many tokens, which nobody keeps, cost more to make
    than to fill: they are made for ROWS tokens at a time."""
    if torch.is_grad_enabled() or not is_large(hidden_states):
        return mlp.run(hidden_states)
    rows = hidden_states.flatten(0, -2)
    if len(rows) <= ROWS or not all_plain_on_cpu(mlp):
        return mlp.run(hidden_states)
    parts = rows.tensor_split(-(-len(rows) // ROWS))
    return torch.cat([mlp.run(part) for part in parts]).view_as(hidden_states)
