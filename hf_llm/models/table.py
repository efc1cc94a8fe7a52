"""Tables of variants: from the value of a setting to what implements it.

A table's keys are the legal values of its setting at that moment, so an entry that a user's file adds is legal
everywhere. Checkpoints that use such an entry carry the file: the table knows which file added what.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


# Name of each user's file that has added an entry -> its text, as a checkpoint carries it.
SOURCES: dict[str, str] = {}


class Table(dict):
    """
    The variants of one setting: `NORMS = Table("norm_type", rmsnorm=RMSNorm, ...)`; `NORMS["tanh"] = TanhNorm`.

    Looking up an unknown key raises ValueError, which lists the legal ones. The package's own entries cannot be
    replaced: checkpoints that name them would change their meaning.

    Args:
        setting: the configuration field (or recipe key) whose legal values are the keys.
        entries: key -> implementation, in the order in which messages list them.

    Attributes:
        files: key -> name of the user's file that added it.
    """

    built_in: frozenset[str] = frozenset()

    def __init__(self, setting: str, /, **entries):
        super().__init__(entries)
        self.setting, self.built_in, self.files = setting, frozenset(entries), {}

    def extend(self, **entries) -> None:
        """Add entries of the package itself, which every checkpoint carries."""
        super().update(entries)
        self.built_in |= set(entries)

    def __setitem__(self, name: str, entry: Any) -> None:
        self._add(name, entry, sys._getframe(1).f_globals)

    def update(self, *args, **entries) -> None:
        for name, entry in dict(*args, **entries).items():
            self._add(name, entry, sys._getframe(1).f_globals)

    def _add(self, name: str, entry: Any, caller: dict[str, Any]) -> None:
        """Add a user's entry; `caller`: the globals of the file that adds it."""
        if name in self.built_in:
            raise ValueError(f"`{self.setting}={name!r}` is hf_llm's own: give the variant another name.")
        super().__setitem__(name, entry)
        if caller["__name__"] != "__main__" and "__file__" in caller:
            file = Path(caller["__file__"])
            self.files[name] = file.name
            SOURCES[file.name] = relative_imports(file.read_text(encoding="utf-8"))

    def __missing__(self, name: str) -> Any:
        load_variants()
        if name in self:
            return self[name]
        raise ValueError(f"`{self.setting}={name!r}` is not known. Legal values: {', '.join(map(repr, self))}.")


def relative_imports(text: str) -> str:
    """Source code whose imports from `hf_llm.models` are those of a neighbour, as in the folder of a checkpoint."""
    return re.sub(r"^(\s*from )hf_llm\.models(\.\w+ import\b)", r"\1\2", text, flags=re.MULTILINE)


def variants_module(names: Iterable[str]) -> str:
    """The `variants.py` of a checkpoint that carries the files `names`."""
    stems = [name.removesuffix(".py") for name in names]
    lines = [f"from .{stem} import __name__ as _{stem}  # noqa: F401\n" for stem in stems]
    return '"""Imports the files that add the variants of this checkpoint."""\n\n' + "".join(lines)


def load_variants() -> None:
    """Import the files that came with a checkpoint. In the package itself there are none."""
    from .variants import __name__ as _  # noqa: F401
