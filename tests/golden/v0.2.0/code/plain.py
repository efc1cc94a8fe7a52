"""Modules that do what their classes say and nothing else: what may be done in parts, or without calling them."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook


ACTIVATIONS = {"transformers.activations", "torch.nn.modules.activation"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
FORWARDS: dict[type[nn.Module], Callable] = {nn.Linear: nn.Linear.forward}  # as they are written


def written_here(cls: type[nn.Module]) -> type[nn.Module]:
    """A decorator: remembers the class's `forward`, which others may replace."""
    FORWARDS[cls] = cls.forward
    return cls


def _weights(module: nn.Module) -> list[torch.Tensor]:
    weights = (getattr(module, name, None) for name in ("weight", "bias"))
    return [weight for weight in weights if weight is not None]


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module is what its class of this package (or `nn.Linear`, or an activation) says, on weights
    that are no quantised or distributed ones: no hook, adapter, offload or replaced method."""
    cls = type(module)
    return (
        (FORWARDS.get(cls) is cls.forward or cls.__module__ in ACTIVATIONS)
        and "forward" not in vars(module)
        and module._compiled_call_impl is None
        and not any(getattr(module, hooks) for hooks in HOOKS)
        and all(type(weight) in (nn.Parameter, torch.Tensor) for weight in _weights(module))
    )


def all_plain_on_cpu(module: nn.Module) -> bool:
    """Whether a module and all its parts are plain, on a CPU, and looked at by no hook on every module there is."""
    plain = (is_plain(part) and all(weight.is_cpu for weight in _weights(part)) for part in module.modules())
    return not _has_any_global_hook() and all(plain)
