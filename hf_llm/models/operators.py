"""Operators that a compiled graph holds as they are."""

import re
from collections.abc import Callable

import torch


def cpu_operator(module: str, name: str) -> Callable:
    """A decorator: `torch.library.custom_op` for CPUs.

    module: `__name__`, which names the operator as well. Code that travels with a checkpoint is another module and may
    be of another version; an operator that is defined again takes the first one's place.
    """
    namespace = re.sub(r"\W", "_", module)
    return torch.library.custom_op(f"{namespace}::{name}", mutates_args=(), device_types="cpu")
