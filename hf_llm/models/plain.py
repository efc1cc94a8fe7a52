"""Modules that do what their classes say and nothing else: what may be done in parts, or without calling them."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


ACTIVATIONS = {"transformers.activations", "torch.nn.modules.activation"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
FORWARDS: dict[type[nn.Module], Callable] = {nn.Linear: nn.Linear.forward}  # as they are written


def written_here(cls: type[nn.Module]) -> type[nn.Module]:
    """A decorator: remembers the class's `forward`, which others may replace."""
    FORWARDS[cls] = cls.forward
    return cls


def _is_plain_weight(weight) -> bool:
    """Whether it is no quantised or distributed one."""
    return weight is None or (type(weight) is nn.Parameter and weight.is_cpu)


def _is_plain(module: nn.Module) -> bool:
    cls = type(module)
    return (
        (FORWARDS.get(cls) is cls.forward or cls.__module__ in ACTIVATIONS)
        and "forward" not in vars(module)
        and module._compiled_call_impl is None
        and not any(getattr(module, hooks) for hooks in HOOKS)
        and _is_plain_weight(getattr(module, "weight", None))
        and _is_plain_weight(getattr(module, "bias", None))
    )


def all_plain(module: nn.Module) -> bool:
    """Whether a module and all its parts are of the classes of this package, of `nn.Linear` or activations, on a CPU,
    without hooks, replaced methods, or weights of another kind (adapters, quantisation, offloading, sharding)."""
    return not _has_any_global_hook() and all(map(_is_plain, module.modules()))
