"""The families: one file each, one table each. A file's `FAMILIES` are found by their `model_type`."""

import importlib
import pkgutil

from ..family import Family


def load_families() -> dict[str, Family]:
    """Every family by the `model_type` of its native configuration."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for family in importlib.import_module(f"{__name__}.{module.name}").FAMILIES:
            found[family.name] = family
    return found
