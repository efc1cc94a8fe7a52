"""Optimizers and learning-rate schedules by name; AdamW, SGD and Muon over groups of parameters by role.

| role | parameters | under `muon` | weight decay |
|---|---|---|---|
| matrix | weights of linear layers (also GPT-2's `Conv1D` and LoRA's) but for those below | Muon | yes |
| experts | stacked (3-D) weights of experts, each expert's matrix by itself | Muon | yes |
| embedding | tokens, positions, types, relative bias; output and task heads; adapters on these | AdamW | if asked |
| router | what scores experts | AdamW | no |
| vector | norms and biases of any shape, sinks, and whatever has one dimension (gates, scales) | AdamW | no |
| other | what no row above knows, such as convolutions | AdamW | yes |

"If asked" is by `decay_embeddings`. Norms, routers and experts are known by the names of their classes (`...Norm`,
`...Router`, `...Experts`), as in transformers: native and users' modules have these names, too.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_wsd_schedule
from transformers.pytorch_utils import Conv1D


ROLES = ("matrix", "experts", "embedding", "router", "vector", "other")
MUON_ROLES = ("matrix", "experts")
DECAYING_ROLES = ("matrix", "experts", "other")
BATCH_ELEMENTS = 2**22  # of matrices that Muon orthogonalises together: more fill a processor by themselves


def parameter_roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """The role of every parameter of `model`, by the table above, in the order of `model.parameters()`."""
    embeddings = {weight for module in _embeddings_and_heads(model) for weight in module.parameters()}
    roles = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            roles[parameter] = _role(path, module, name, parameter, parameter in embeddings)
    return {parameter: roles[parameter] for parameter in model.parameters()}


def _role(path: str, module: nn.Module, name: str, parameter: nn.Parameter, of_embeddings: bool) -> str:
    kind = type(module).__name__
    shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves no parameter in place
    if name.endswith("bias") or "Norm" in kind or sum(size > 1 for size in shape) < 2:
        return "vector"
    if of_embeddings:
        return "embedding"
    if "Router" in kind or path.split(".")[-1] in ("gate", "router"):  # natives' routers may be plain linear layers
        return "router"
    if "Expert" in kind and len(shape) == 3:
        return "experts"
    return "matrix" if isinstance(module, (nn.Linear, Conv1D)) else "other"


def _embeddings_and_heads(model: nn.Module) -> Iterator[nn.Module]:
    """Embeddings, the output head and the last layer of a task head, with PEFT's wrappers around them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # of a PeftModel
    if hasattr(base, "get_output_embeddings") and (head := base.get_output_embeddings()) is not None:
        yield head
    for module in model.modules():
        if isinstance(_wrapped(module), nn.Embedding):
            yield module
    backbone = getattr(base, "base_model", base)
    if backbone is not base:
        yield from (child for child in base.children() if isinstance(_wrapped(child), nn.Linear))


def _wrapped(module: nn.Module) -> nn.Module:
    """What PEFT has put an adapter or a trained copy around, or the module itself."""
    return getattr(module, "base_layer", None) or getattr(module, "original_module", None) or module


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = False) -> list[dict]:
    """The trainable parameters of `model` in groups by role.

    Args:
        model: any module; tied weights appear once.
        weight_decay: decoupled decay coefficient of the roles that decay.
        decay_embeddings: whether embeddings and the output head decay as well.

    Returns:
        Non-empty groups `{"name", "params", "weight_decay"}`, named by role; every trainable parameter is in one.
    """
    members = {role: [] for role in ROLES}
    for parameter, role in parameter_roles(model).items():
        if parameter.requires_grad:
            members[role].append(parameter)
    decaying = (*DECAYING_ROLES, "embedding") if decay_embeddings else DECAYING_ROLES
    return [
        {"name": role, "params": params, "weight_decay": weight_decay if role in decaying else 0.0}
        for role, params in members.items()
        if params
    ]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for hidden matrices and experts, and AdamW for all the rest, as one optimizer object.

    One object with one list of `param_groups` and one `state` is what schedulers, Accelerate and checkpoints handle.
    AdamW's part is done by `torch.optim.AdamW`, which sees views of these groups and this state; Muon's is that of
    `torch.optim.Muon` (on a CPU to the bit), with matrices of one shape taken together, each expert's by itself, and
    whole where they are sharded. Muon's updates are scaled to the RMS of AdamW's (`match_rms_adamw`), so that one
    learning rate, one decay and one schedule serve both. Muon: https://kellerjordan.github.io/posts/muon/; scaling:
    https://arxiv.org/abs/2502.16982.

    Args:
        groups: parameter groups; those named in `MUON_ROLES` go to Muon.
        lr: learning rate of both; `matrix_lr` overrides it for Muon's matrices.
        momentum: Muon's momentum.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        matrix_lr: float | None = None,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        placeholder = nn.Parameter(torch.zeros(1, 1))
        self._adamw = torch.optim.AdamW([placeholder], lr=lr, betas=betas, eps=eps, fused=True)
        muon = torch.optim.Muon(
            [placeholder], lr=lr if matrix_lr is None else matrix_lr, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        settled = [{**(muon if g["name"] in MUON_ROLES else self._adamw).defaults, **g} for g in groups]
        super().__init__(settled, {})

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both members."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # The views are taken at every step: loading a checkpoint and Accelerate's FSDP2 replace groups and state.
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if group["name"] not in MUON_ROLES]
        self._adamw.step()
        for group in self.param_groups:
            if group["name"] in MUON_ROLES:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict) -> None:
        """`torch.optim.Muon.step` for one group, with matrices of one shape orthogonalised together.

        The momentum of sharded matrices (`DTensor`) stays sharded; they are orthogonalised whole.
        """
        learning_rate = float(group["lr"])
        for batch in _batches([p for p in group["params"] if p.grad is not None]):
            updates = []
            for parameter in batch:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                updates.append(update.full_tensor() if isinstance(update, DTensor) else update)
            stacked = torch.stack(updates)  # (parameters, rows, columns), of experts (parameters, experts, ...)
            matrices = stacked.flatten(0, -3)
            matrices = orthogonalize(matrices, group["ns_coefficients"], group["ns_steps"], group["eps"])
            orthogonal = matrices.view(stacked.shape)
            rate = learning_rate * (0.2 * math.sqrt(max(stacked.shape[-2:])))  # "match_rms_adamw"
            for parameter, update in zip(batch, orthogonal, strict=True):
                if isinstance(parameter, DTensor):
                    update = distribute_tensor(
                        update.contiguous(), parameter.device_mesh, parameter.placements, src_data_rank=None
                    )
                parameter.mul_(1 - learning_rate * group["weight_decay"]).add_(update, alpha=-rate)


def _batches(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Parameters of one shape, device and dtype, at most `BATCH_ELEMENTS` or one at a time."""
    alike = defaultdict(list)
    for parameter in parameters:
        alike[parameter.shape, parameter.device, parameter.grad.dtype].append(parameter)
    for (shape, *_), members in alike.items():
        count = max(1, BATCH_ELEMENTS // shape.numel())
        yield from (members[start : start + count] for start in range(0, len(members), count))


def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz iterations of Muon in bfloat16: (n, rows, columns) -> (n, rows, columns) bfloat16.

    What torch's `_zeropower_via_newtonschulz` does to one matrix, for n at once: a small matrix keeps no processor
    busy.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    states = matrices.bfloat16()
    if is_tall:
        states = states.mT.contiguous()
    states = states / torch.linalg.vector_norm(states, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = torch.bmm(states, states.mT)
        states = torch.baddbmm(states, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), states, beta=a)
    return states.mT if is_tall else states


def _adamw(groups: list[dict], args: Any) -> torch.optim.Optimizer:
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=True)


def _muon(groups: list[dict], args: Any) -> torch.optim.Optimizer:
    rates = {"lr": args.learning_rate, "matrix_lr": args.muon_learning_rate, "momentum": args.momentum}
    return MuonWithAdamW(groups, **rates, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)


def _sgd(groups: list[dict], args: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=args.learning_rate, momentum=args.momentum)


# training.optimizer -> (groups of `parameter_groups`, the run's arguments) -> optimizer
OPTIMIZERS = {"adamw": _adamw, "muon": _muon, "sgd": _sgd}


def build_optimizer(model: nn.Module, args: Any) -> torch.optim.Optimizer:
    """The optimizer that `args` (`OptimizerArguments`) ask for, over `parameter_groups(model)`."""
    return OPTIMIZERS[args.optimizer](parameter_groups(model, args.weight_decay, args.decay_embeddings), args)


def _decay(shape: str, whole: bool, optimizer: torch.optim.Optimizer, args: Any, steps: int) -> LRScheduler:
    """Linear warmup, a plateau, and a decay to `min_lr_ratio` over all that is left (`whole`) or `decay_fraction`."""
    warmup = args.get_warmup_steps(steps)
    decay = steps - warmup if whole else min(steps - warmup, math.ceil(args.decay_fraction * steps))
    options = {"num_decay_steps": decay, "decay_type": shape, "min_lr_ratio": args.min_lr_ratio}
    return get_wsd_schedule(optimizer, num_warmup_steps=warmup, num_training_steps=steps, **options)


# training.schedule -> (optimizer, the run's arguments, number of steps) -> scheduler, stepped once per optimizer step.
# "1-sqrt" is the decay found best for "wsd" (warmup, stable, decay) in https://arxiv.org/abs/2405.18392.
SCHEDULES = {
    "cosine": functools.partial(_decay, "cosine", True),
    "linear": functools.partial(_decay, "linear", True),
    "wsd": functools.partial(_decay, "1-sqrt", False),
}


class OptimizerByName:
    """For a trainer whose `args` are `OptimizerArguments`: stands before `Trainer` among its bases."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.is_deepspeed_enabled and self.args.optimizer == "muon":
            raise ValueError("training.optimizer = 'muon' needs whole matrices, which DeepSpeed flattens: use adamw")
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model if model is None else model, self.args)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is None and hasattr(self.args, "schedule"):
            make = SCHEDULES[self.args.schedule]
            self.lr_scheduler = make(self.optimizer if optimizer is None else optimizer, self.args, num_training_steps)
            self._created_lr_scheduler = True  # a second `train()` makes a new one
        return super().create_scheduler(num_training_steps, optimizer)
