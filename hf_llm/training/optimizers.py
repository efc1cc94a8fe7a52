"""AdamW, SGD and Muon over parameter groups that decay what should decay.

| group | members | weight decay | under `muon` |
|---|---|---|---|
| matrix | hidden 2-D weights | yes | Muon |
| experts | stacked (3-D) expert weights | yes | AdamW: torch's Muon takes 2-D matrices only |
| embedding | `nn.Embedding` weights and the output head | with `decay_embeddings` | AdamW |
| vector | norms, biases, scalars | no | AdamW |
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


OPTIMIZERS = ("adamw", "muon", "sgd")


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = False) -> list[dict]:
    """Sort the trainable parameters of `model` into the groups of the table above.

    Args:
        model: any module; tied weights appear once.
        weight_decay: decoupled decay coefficient of the groups that decay.
        decay_embeddings: whether embeddings and the output head decay as well.

    Returns:
        Non-empty groups `{"name", "params", "weight_decay"}`; every trainable parameter is in exactly one.
    """
    heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if hasattr(model, "get_output_embeddings") and (head := model.get_output_embeddings()) is not None:
        heads.add(id(head.weight))

    members = {"matrix": [], "experts": [], "embedding": [], "vector": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            name = "vector"
        elif id(parameter) in heads:
            name = "embedding"
        else:
            name = "matrix" if parameter.ndim == 2 else "experts"
        members[name].append(parameter)

    decays = {"matrix": True, "experts": True, "embedding": decay_embeddings, "vector": False}
    return [
        {"name": name, "params": params, "weight_decay": weight_decay if decays[name] else 0.0}
        for name, params in members.items()
        if params
    ]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the hidden matrices and AdamW for all the rest, as one optimizer object.

    One object with one list of `param_groups` and one `state` is what schedulers, Accelerate and checkpoints handle.
    The work is done by `torch.optim.Muon` and `torch.optim.AdamW`, which see views of this optimizer's groups and
    state. Muon's updates are scaled to the RMS of AdamW's (`match_rms_adamw`), so that one learning rate, one decay
    and one schedule serve both. Muon: https://kellerjordan.github.io/posts/muon/; scaling:
    https://arxiv.org/abs/2502.16982.

    Args:
        groups: parameter groups; a group named "matrix" goes to Muon.
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
        self._members = {
            True: torch.optim.Muon([placeholder], lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
            False: torch.optim.AdamW([placeholder], lr=lr, betas=betas, eps=eps, fused=True),
        }
        settled = []
        for group in groups:
            is_muon = group["name"] == "matrix"
            group_lr = matrix_lr if is_muon and matrix_lr is not None else lr
            settled.append({**self._members[is_muon].defaults, "lr": group_lr, **group})
        super().__init__(settled, {})

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both members. Sharded (`DTensor`) matrices are orthogonalised whole, see `_step_sharded`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, member in self._members.items():
            # The views are taken at every step: loading a checkpoint and Accelerate's FSDP2 replace groups and state.
            member.state = self.state
            member.param_groups = [group for group in self.param_groups if (group["name"] == "matrix") is is_muon]
            if not is_muon or not any(isinstance(p, DTensor) for g in member.param_groups for p in g["params"]):
                member.step()
                continue
            for group in member.param_groups:
                for parameter in group["params"]:
                    self._step_sharded(parameter, group)
        return loss

    def _step_sharded(self, parameter: DTensor, group: dict) -> None:
        """Muon's step for one sharded matrix: momentum stays sharded, the orthogonalisation sees the full matrix.

        (Newton-Schulz on unevenly sharded rows fails inside DTensor's matmul.)
        """
        if parameter.grad is None:
            return
        state = self.state[parameter]
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
        buffer.lerp_(parameter.grad, 1 - group["momentum"])
        update = parameter.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer

        scratch = nn.Parameter(torch.zeros_like(full := update.full_tensor()))
        scratch.grad = full
        settings = {key: group[key] for key in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
        torch.optim.Muon([scratch], weight_decay=0.0, momentum=0.0, nesterov=False, **settings).step()

        step = distribute_tensor(scratch.detach(), parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step)


def build_optimizer(model: nn.Module, args) -> torch.optim.Optimizer:
    """The optimizer that `args` (`OptimizerArguments`, `TrainingArguments`) ask for, over `parameter_groups(model)`.

    Raises:
        ValueError: `args.optimizer` is not in `OPTIMIZERS`.
    """
    groups = parameter_groups(model, args.weight_decay, args.decay_embeddings)
    betas = (args.adam_beta1, args.adam_beta2)
    if args.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=True)
    if args.optimizer == "muon":
        return MuonWithAdamW(
            groups,
            lr=args.learning_rate,
            matrix_lr=args.muon_learning_rate,
            momentum=args.momentum,
            betas=betas,
            eps=args.adam_epsilon,
        )
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate, momentum=args.momentum)
    raise ValueError(f"training.optimizer = {args.optimizer!r} is unknown; legal: {', '.join(OPTIMIZERS)}")


class OptimizerByName:
    """For a trainer whose `args` are `OptimizerArguments`: stands before `Trainer` among its bases."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.is_deepspeed_enabled and self.args.optimizer == "muon":
            raise ValueError("training.optimizer = 'muon' needs whole matrices, which DeepSpeed flattens: use adamw")
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model if model is None else model, self.args)
        return self.optimizer
