"""Pieces of tables for encoder-decoders, whose halves mostly say the same."""

from collections.abc import Callable, Mapping
from typing import Any

from .family import Field


HALVES = ("encoder", "decoder")


def both(*names: str) -> tuple[str, ...]:
    """The fields of these names in either half."""
    return tuple(f"{half}.{name}" for name in names for half in HALVES)


def in_both(**names: str) -> tuple[Field, ...]:
    """`in_both(hidden_size="d_model")`: our field in both halves = native field."""
    return tuple(Field(native, both(ours)) for ours, native in names.items())


def both_have(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values in both halves, for `Family.constants`."""
    return {f"{half}.{name}": value for name, value in values.items() for half in HALVES}


def halves(weights: Callable[[str], Mapping[str, str]]) -> dict[str, str]:
    """The weights of both halves, from a function that gives those of one (named without the half)."""
    return {f"{half}.{ours}": f"{half}.{native}" for half in HALVES for ours, native in weights(half).items()}
