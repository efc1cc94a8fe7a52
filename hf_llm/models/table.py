"""Tables of variants: from the value of a setting to what implements it.

A table's keys are the legal values of its setting at that moment, so an entry that a user's file adds is legal
everywhere. A checkpoint carries that file (see `variants.py`), which is imported when a key is missing.
"""

from typing import Any


class Table(dict):
    """
    The variants of one setting: `NORMS = Table("norm_type", rmsnorm=RMSNorm, ...)`; `NORMS["tanh"] = TanhNorm`.

    Looking up an unknown key raises ValueError, which lists the legal ones. The package's own entries cannot be
    replaced: checkpoints that name them would change their meaning.

    Args:
        setting: the configuration field (or recipe key) whose legal values are the keys.
        entries: key -> implementation, in the order in which messages list them.
    """

    built_in: frozenset[str] = frozenset()

    def __init__(self, setting: str, /, **entries):
        super().__init__(entries)
        self.setting, self.built_in = setting, frozenset(entries)

    def __setitem__(self, name: str, entry: Any) -> None:
        if name in self.built_in:
            raise ValueError(f"`{self.setting}={name!r}` is hf_llm's own: give the variant another name.")
        super().__setitem__(name, entry)

    def __missing__(self, name: str) -> Any:
        from .variants import __name__ as _  # noqa: F401 - in a checkpoint, it imports the files that came along

        if name in self:
            return self[name]
        raise ValueError(f"`{self.setting}={name!r}` is not known. Legal values: {', '.join(map(repr, self))}.")
