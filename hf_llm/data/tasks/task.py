"""What is known about an embedded data set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from datasets import Features


@dataclass(frozen=True)
class Task:
    """A labelled data set that needs no hub.

    Attributes:
        rows: yields the examples, as dicts; its keyword arguments are options that a data section may set.
        features: columns and their types.
        group_by: columns whose content decides the split: examples that agree in them never straddle it.
        licence: SPDX identifier, or "public-domain".
        source: the package that it comes from.
        about: what an example is.
        versions: what else the content depends on, with these options: the versions of installed sources.
    """

    rows: Callable[..., Iterator[dict]]
    features: Features
    group_by: tuple[str, ...]
    licence: str
    source: str
    about: str
    versions: Callable[[dict], dict] = lambda options: {}
