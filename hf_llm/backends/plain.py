"""Detects modules whose code is unmodified, so that a fast path may bypass `__call__`."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from hf_llm.models.attention import Attention
from hf_llm.models.feedforward import FeedForward, GatedFeedForward
from hf_llm.models.layer import TransformerLayer
from hf_llm.models.norms import NORMS


ACTIVATIONS = {"transformers.activations", "torch.nn.modules.activation"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _methods(cls: type[nn.Module]) -> dict[str, Callable]:
    names = {name for base in cls.__mro__ if base.__module__.startswith("hf_llm.") for name in vars(base)}
    return {name: value for name in names if callable(value := getattr(cls, name))}


# Class -> its methods as they were when hf_llm was imported. Other classes, such as variants and subclasses, are never
# bypassed.
KNOWN: dict[type[nn.Module], dict[str, Callable]] = {
    nn.Linear: {"forward": nn.Linear.forward},
    **{cls: _methods(cls) for cls in (TransformerLayer, Attention, FeedForward, GatedFeedForward)},
    **{NORMS[name]: _methods(NORMS[name]) for name in NORMS.built_in},
}


def _weights(module: nn.Module) -> list[torch.Tensor]:
    weights = (getattr(module, name, None) for name in ("weight", "bias"))
    return [weight for weight in weights if weight is not None]


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module computes what its class in `KNOWN` (or an activation of transformers) computes, on
    weights that are neither quantised nor distributed: no hook, adapter, offload or replaced method."""
    cls, own = type(module), vars(module)
    methods = KNOWN.get(cls)
    if methods is None:
        known = cls.__module__ in ACTIVATIONS and "forward" not in own
    else:
        known = all(getattr(cls, name) is method and name not in own for name, method in methods.items())
    return (
        known
        and module._compiled_call_impl is None
        and not any(getattr(module, hooks) for hooks in HOOKS)
        and all(type(weight) in (nn.Parameter, torch.Tensor) for weight in _weights(module))
    )


def all_plain_on_cpu(module: nn.Module) -> bool:
    """Whether a module and all its parts are plain and on a CPU, and no global hook is registered."""
    plain = (is_plain(part) and all(weight.is_cpu for weight in _weights(part)) for part in module.modules())
    return not _has_any_global_hook() and all(plain)
