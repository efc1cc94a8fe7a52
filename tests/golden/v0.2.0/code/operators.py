"""Our own operators and autograd functions on a CPU: where they may run, and how a compiled graph holds them."""

import hashlib
from collections.abc import Callable

import torch
from torch.autograd import forward_ad


LARGE = 2**16  # elements of a tensor that leaves a core's cache when others follow


def cpu_operator(module: str, name: str) -> Callable:
    """A decorator: `torch.library.custom_op` for CPUs.

    module: `__name__`, whose digest is the operator's namespace. Code that travels with a checkpoint is another module
    and may be of another version; an operator that is defined again takes the first one's place. (Torch takes ASCII
    names alone, and folders of checkpoints have others.)
    """
    namespace = hashlib.sha256(module.encode()).hexdigest()[:12]
    return torch.library.custom_op(f"hf_llm_{namespace}::{name}", mutates_args=(), device_types="cpu")


def values_are_known() -> bool:
    """Whether Python may look at a tensor's values: not in a graph that is being made, nor under torch.func or
    forward-mode differentiation, where one tensor may stand for many."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation looks on, which know torch's own operators alone."""
    return not (torch.compiler.is_compiling() or values_are_known())


def runs_plainly_on_cpu(states: torch.Tensor) -> bool:
    """Whether a tensor is on a CPU and what is done to it is done now: not in graphs (torch's compiler fuses by
    itself, traces and exports hold no Python), under torch.func or forward-mode differentiation, or in float64, in
    which gradients are checked."""
    return states.is_cpu and states.dtype != torch.float64 and values_are_known() and not torch.jit.is_tracing()


def needs_gradients(*tensors: torch.Tensor) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def trains_on_cpu(states: torch.Tensor) -> bool:
    """Whether a backward pass will come by which a Python autograd function pays."""
    return needs_gradients(states) and runs_plainly_on_cpu(states)


def is_large(states: torch.Tensor) -> bool:
    """Whether a tensor is one that runs plainly on a CPU, and so large that new memory costs more than arithmetic."""
    return runs_plainly_on_cpu(states) and states.numel() >= LARGE
