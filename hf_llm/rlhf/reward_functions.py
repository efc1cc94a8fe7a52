"""Rewards that a function gives, by name, as `FILE.py:function` or as `module:function`.

A reward function takes `prompts`, `completions` and the data set's other columns as keywords, and returns a number
for each completion (None where another reward may decide). The functions of `REWARD_FUNCTIONS` take texts, the columns
as a dict, and their options; `make_reward_function` makes reward functions of them.
"""

import functools
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path

from hf_llm.training.settings import check_keys, suggestion


def length(texts: list[str], columns: dict, target: int, unit: str = "words") -> list[float]:
    """1 at `target` words (or characters), falling to 0 at none and at twice as many."""
    units = {"words": str.split, "characters": str}
    if target < 1 or unit not in units:
        raise ValueError(f"target = {target!r} must be at least 1, and unit = {unit!r} one of {', '.join(units)}")
    return [max(0.0, 1 - abs(len(units[unit](text)) - target) / target) for text in texts]


def regex(texts: list[str], columns: dict, pattern: str) -> list[float]:
    """1 where `pattern` is found in the completion (`re.search`), else 0."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern = {pattern!r} is no regular expression: {error}") from error
    return [float(compiled.search(text) is not None) for text in texts]


def answer(texts: list[str], columns: dict, column: str = "answer") -> list[float]:
    """1 where the first word of the completion is that of the column, letter case and punctuation aside, else 0."""

    def first_word(text: str) -> str:
        return next(iter(re.findall(r"\w+", text.casefold())), "")

    return [float(first_word(text) == first_word(right)) for text, right in _beside(texts, columns, column)]


def number(texts: list[str], columns: dict, column: str = "answer") -> list[float]:
    """1 where the last number of the completion is that of the column, else 0: problems with a numeric result.

    Raises:
        ValueError: the column has no number.
    """

    def last_number(text: str) -> float | None:
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        return float(found[-1].replace(",", "")) if found else None

    pairs = [(last_number(text), last_number(right), right) for text, right in _beside(texts, columns, column)]
    for _, wanted, right in pairs:
        if wanted is None:
            raise ValueError(f"a reward compares with the numbers of column {column!r}, and {right!r} has none")
    return [float(found == wanted) for found, wanted, _ in pairs]


def distinct(texts: list[str], columns: dict, n: int = 2) -> list[float]:
    """Distinct sequences of `n` words as a share of all (distinct-n, arXiv 1510.03055): against repetition."""
    if n < 1:
        raise ValueError(f"n = {n!r} must be at least 1")
    grams = [list(zip(*(text.split()[i:] for i in range(n)), strict=False)) for text in texts]
    return [len(set(found)) / max(len(found), 1) for found in grams]


REWARD_FUNCTIONS = {"length": length, "regex": regex, "answer": answer, "number": number, "distinct": distinct}


def make_reward_function(name: str, options: dict, columns: list[str]) -> Callable:
    """
    A reward function.

    Args:
        name: of `REWARD_FUNCTIONS`; or `FILE.py:function` or `module:function` (of the working directory or
            installed), where the options are further keywords of each call.
        options: of the function.
        columns: of the data set.

    Raises:
        ValueError: no such function, options that it does not take, or it needs a column that is missing.
    """
    if ":" in name:
        reward = functools.partial(_resolve(name), **options)
        reward.__name__ = name.rpartition(":")[2]
        return reward
    if name not in REWARD_FUNCTIONS:
        raise ValueError(
            f"rewards.function = {name!r} is neither FILE.py:function, nor module:function, nor known"
            f"{suggestion(name, REWARD_FUNCTIONS)}"
        )
    function = REWARD_FUNCTIONS[name]
    parameters = list(inspect.signature(function).parameters.values())[2:]
    check_keys(options, [parameter.name for parameter in parameters], "rewards.options")
    if missing := [p.name for p in parameters if p.default is p.empty and p.name not in options]:
        raise ValueError(f"rewards.function = {name!r} needs rewards.options.{missing[0]}")

    def reward(completions, **columns) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]  # of a conversation, its last
        return function(texts, columns, **options)

    reward.__name__ = name
    try:
        reward([], **dict.fromkeys(columns, []))
    except (TypeError, ValueError) as error:
        raise ValueError(f"rewards.function = {name!r}, options {options}: {error}") from error
    return reward


def _resolve(name: str) -> Callable:
    """The function of `FILE.py:function` or `module:function`. ValueError: there is none."""
    module, _, function = name.rpartition(":")
    file = Path(module).resolve()
    here = str(file.parent if module.endswith(".py") else Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # stays there: worker processes import the function anew
    try:
        if module.endswith(".py") and not file.is_file():
            raise ImportError(f"{file} is no file")
        found = pkgutil.resolve_name(f"{file.stem}:{function}" if module.endswith(".py") else name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"rewards.function = {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"rewards.function = {name!r} is a {type(found).__name__}, no function")
    return found


def _beside(texts: list[str], columns: dict, column: str) -> list[tuple[str, str]]:
    """Each text with the entry of a column."""
    if column not in columns:
        raise ValueError(f"a reward compares with column {column!r}; there are {', '.join(columns)}")
    return [(text, str(right)) for text, right in zip(texts, columns[column], strict=True)]
