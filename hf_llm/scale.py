"""What training costs each of several processes, by how they divide the work: memory and communication.

From the configuration alone; nothing is allocated. Activations are left out: they depend on rows, recomputation and
kernels. Bytes are those of bfloat16 training by `recipes/accelerate/*.yaml`.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from .training import optimizers
from .training.throughput import times_run


# bytes of optimizer state for each parameter, by group of `optimizers.parameter_groups` ("" for the others)
STATE_BYTES = {"adamw": {"": 8}, "muon": {**dict.fromkeys(optimizers.MUON_ROLES, 4), "": 8}, "sgd": {"": 4}}


@dataclass(frozen=True)
class Strategy:
    """What one process holds and sends of each parameter.

    Args:
        weights, gradients, master: bytes of its weight, its gradient and a float32 copy of the weight, if there is one
            beside the weight; the copy goes with the optimizer's state.
        shards: which of "weights", "gradients", "optimizer" are divided among the processes.
        sent: bytes of each pass over all parameters in a step: gradients that are reduced to shards, weights or
            gradients that are gathered from them. A pass sends (N - 1) / N of the parameters
            (https://arxiv.org/abs/1910.02054, section 7).
    """

    weights: int
    gradients: int
    master: int
    shards: tuple[str, ...]
    sent: tuple[int, ...]


# DDP under autocast reduces float32 gradients; DeepSpeed trains bfloat16 weights beside a float32 copy; FSDP2 holds
# float32 shards, gathers them as bfloat16 before either pass, and reduces bfloat16 gradients
STRATEGIES = {
    "DDP": Strategy(4, 4, 0, (), (4, 4)),
    "ZeRO-1": Strategy(2, 2, 4, ("optimizer",), (2, 2)),
    "ZeRO-2": Strategy(2, 2, 4, ("optimizer", "gradients"), (2, 2)),
    "ZeRO-3": Strategy(2, 2, 4, ("optimizer", "gradients", "weights"), (2, 2, 2)),
    "FSDP2": Strategy(4, 4, 0, ("optimizer", "gradients", "weights"), (2, 2, 2)),
}


def state_bytes(model: PreTrainedModel, optimizer: str) -> int:
    """Bytes that an optimizer (a key of STATE_BYTES) keeps for the whole model."""
    widths = STATE_BYTES[optimizer]
    groups = optimizers.parameter_groups(model, weight_decay=0.0)
    return sum(widths.get(group["name"], widths[""]) * sum(p.numel() for p in group["params"]) for group in groups)


def training_bytes(model: PreTrainedModel, optimizer: str, strategy: str, processes: int) -> int:
    """Bytes of weights, gradients and optimizer state on each process; `strategy` is a key of STRATEGIES."""
    kind, size = STRATEGIES[strategy], model.num_parameters()
    held = {
        "weights": kind.weights * size,
        "gradients": kind.gradients * size,
        "optimizer": kind.master * size + state_bytes(model, optimizer),
    }
    return sum(-(-part // processes) if name in kind.shards else part for name, part in held.items())


def sent_bytes(model: PreTrainedModel, strategy: str, processes: int) -> int:
    """Bytes that each process sends in an optimizer step, by ring algorithms; accumulated micro-batches send no more
    where only the last is reduced (DDP)."""
    return sum(STRATEGIES[strategy].sent) * model.num_parameters() * (processes - 1) // processes


def tensor_parallel(model: PreTrainedModel, optimizer: str, processes: int, tokens: int) -> tuple[int, int] | None:
    """
    The same two figures where `tp_plan="auto"` divides the matrices (https://arxiv.org/abs/1909.08053): bytes held,
    and bytes sent for `tokens` tokens, forward and backward. `None` for a model without a plan.

    The outputs of row-wise layers are reduced over all processes in the forward pass, the gradients of the inputs of
    column-wise layers in the backward pass, and logits are gathered; all in bfloat16.
    """
    plan = {pattern: style for pattern, style in model.tp_plan.items() if not style.startswith("replicated")}
    if not plan:
        return None
    names = {id(p): name.removesuffix(".weight").removesuffix(".bias") for name, p in model.named_parameters()}
    divided = {i for i, name in names.items() if any(fnmatchcase(name, pattern) for pattern in plan)}
    whole = training_bytes(model, optimizer, "DDP", 1) / model.num_parameters()
    held = sum(p.numel() / (processes if id(p) in divided else 1) * whole for p in model.parameters())
    reduced = gathered = 0
    times = times_run(model)
    for name, module in model.named_modules():
        style = next((style for pattern, style in plan.items() if fnmatchcase(name, pattern)), "")
        if isinstance(module, nn.Embedding):
            reduced += module.embedding_dim if style else 0
        elif isinstance(module, nn.Linear) and style.startswith("rowwise"):
            reduced += module.out_features * times(name)
        elif isinstance(module, nn.Linear) and style.startswith("colwise"):
            reduced += module.in_features * times(name)
            gathered += module.out_features if style == "colwise_gather_output" else 0
    sent = 2 * tokens * (2 * reduced + gathered) * (processes - 1) / processes
    return round(held), round(sent)
