"""Operators: what a device may compute faster than plain PyTorch.

Each is a function whose body is plain PyTorch and right on every device. A backend (hf_llm/backends) enters forms for
types of devices, which the device of the first argument chooses; a checkpoint that is opened by its own code has none.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import forward_ad


# Name of an operator -> type of device ("cpu", "cuda", ...) -> its form there. `rms_norm`, `rotate_halves`, `gate`,
# `feed_forward`, `summed_cross_entropy`, `decoding` and `decode_token` stand beside what calls them.
OPERATORS: dict[str, dict[str, Callable]] = {}


def operator(plain: Callable) -> Callable:
    """A decorator: makes a function an operator, and keeps it as `.plain` for forms that leave something to it."""
    forms = OPERATORS[plain.__name__] = {}

    @functools.wraps(plain)
    def run(subject, *args):
        return forms.get(subject.device.type, plain)(subject, *args)

    run.plain = plain
    return run


@operator
def decoding(stack: torch.nn.Module) -> AbstractContextManager:
    """Entered while `generate` adds tokens to the texts that a `TransformerStack` reads."""
    return nullcontext()


@operator
def decode_token(hidden_states: torch.Tensor, stack: torch.nn.Module, *inputs) -> torch.Tensor | None:
    """The layers of a stack for one token of each text, hidden_states (batch, 1, hidden) -> the same; `None` where the
    layers are to be called. inputs: see `TransformerStack.run_layers`."""
    return None


def values_are_known() -> bool:
    """Whether Python may look at a tensor's values: not in a graph that is being made, nor under torch.func or
    forward-mode differentiation, where one tensor may stand for many."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is active, which know torch's own operators alone."""
    return not (torch.compiler.is_compiling() or values_are_known())


def cast_once(hidden_states: torch.Tensor) -> torch.Tensor:
    """The input of several matrix products in their dtype under autocast, which would cast it for each of them."""
    device = hidden_states.device.type
    if hidden_states.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return hidden_states.to(torch.get_autocast_dtype(device))
    return hidden_states
