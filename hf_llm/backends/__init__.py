"""What makes a device fast: forms of the models' operators, entered when hf_llm is imported.

The environment variable `HF_LLM_BACKENDS` chooses among them: names with commas between, or `none` for plain PyTorch.
"""

import os
from collections.abc import Callable

from . import cpu, cross_entropy, liger


# in the order in which they are entered: a later one takes the place of an earlier one on a device of both
BACKENDS: dict[str, Callable[[], None]] = {
    "cpu": cpu.register,
    "cross_entropy": cross_entropy.register,
    "liger": liger.register,
}


def register() -> None:
    """Enter the backends that `HF_LLM_BACKENDS` names; all if it is not set."""
    value = os.environ.get("HF_LLM_BACKENDS", ",".join(BACKENDS))
    chosen = [] if value == "none" else [name.strip() for name in value.split(",")]
    if unknown := ", ".join(repr(name) for name in chosen if name not in BACKENDS):
        legal = ", ".join(["none", *BACKENDS])
        raise ValueError(f"`HF_LLM_BACKENDS={value}` names {unknown}, but knows only: {legal}.")
    for name, enter in BACKENDS.items():
        if name in chosen:
            enter()
