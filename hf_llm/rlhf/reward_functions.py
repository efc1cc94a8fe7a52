"""Rewards that a function gives, by name or as `module:function`.

A reward function takes `prompts`, `completions` and the data set's other columns as keywords, and returns a number
for each completion (None where another reward may decide). What is below makes such functions from options.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Callable

from hf_llm.training.settings import suggestion


def text_of(completion: str | list[dict]) -> str:
    """The text of a completion, which in a conversation is a message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def length(target: int, unit: str = "words") -> Callable:
    """1 at `target` words (or characters), falling to 0 at none and at twice as many.

    Raises:
        ValueError: a target or unit that is none.
    """
    units = {"words": str.split, "characters": str}
    if target < 1 or unit not in units:
        raise ValueError(f"target = {target!r} must be at least 1, and unit = {unit!r} one of {', '.join(units)}")
    count = units[unit]

    def reward(completions, **columns) -> list[float]:
        return [max(0.0, 1 - abs(len(count(text_of(c))) - target) / target) for c in completions]

    return reward


def regex(pattern: str) -> Callable:
    """1 where `pattern` is found in the completion (`re.search`), else 0. ValueError: it is no regular expression."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern = {pattern!r} is no regular expression: {error}") from error

    def reward(completions, **columns) -> list[float]:
        return [float(compiled.search(text_of(c)) is not None) for c in completions]

    return reward


def answer(column: str = "answer") -> Callable:
    """1 where the first word of the completion is that of the column, letter case and punctuation aside, else 0."""
    return _compared(column, lambda text, right: _first_word(text) == _first_word(str(right)))


def number(column: str = "answer") -> Callable:
    """1 where the last number of the completion is that of the column, else 0: problems with a numeric result.

    The reward raises ValueError where the column has no number.
    """

    def is_right(text: str, right) -> bool:
        found, wanted = _numbers(text), _numbers(str(right))
        if not wanted:
            raise ValueError(f"a reward compares with the numbers of column {column!r}, and {right!r} has none")
        return found[-1:] == wanted[-1:]

    return _compared(column, is_right)


def distinct(n: int = 2) -> Callable:
    """Distinct sequences of `n` words as a share of all (distinct-n, arXiv 1510.03055): against repetition.

    Raises:
        ValueError: `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"n = {n!r} must be at least 1")

    def reward(completions, **columns) -> list[float]:
        shares = []
        for completion in completions:
            words = text_of(completion).split()
            grams = list(zip(*(words[i:] for i in range(n)), strict=False))
            shares.append(len(set(grams)) / max(len(grams), 1))
        return shares

    return reward


REWARD_FUNCTIONS = {"length": length, "regex": regex, "answer": answer, "number": number, "distinct": distinct}


def make_reward_function(name: str, options: dict) -> Callable:
    """
    A reward function.

    Args:
        name: of `REWARD_FUNCTIONS`, or `module:function`, where the options are further keywords of each call.
        options: of the function.

    Raises:
        ValueError: no such function, or options that it does not take.
    """
    if ":" in name:
        reward = functools.partial(_imported(name), **options)
        reward.__name__ = name.rpartition(":")[2]
        return reward
    if name not in REWARD_FUNCTIONS:
        raise ValueError(
            f"rewards.function = {name!r} is neither module:function nor known{suggestion(name, REWARD_FUNCTIONS)}"
        )
    maker = REWARD_FUNCTIONS[name]
    try:
        inspect.signature(maker).bind(**options)
        reward = maker(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rewards.options of {name}{inspect.signature(maker)}: {error}") from error
    reward.__name__ = name
    return reward


def _imported(name: str) -> Callable:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"rewards.function = {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"rewards.function = {name!r} is a {type(found).__name__}, not a function")
    return found


def _compared(column: str, is_right: Callable[[str, object], bool]) -> Callable:
    def reward(completions, **columns) -> list[float]:
        if column not in columns:
            raise ValueError(f"a reward compares with column {column!r}, which the data set does not have")
        return [float(is_right(text_of(c), right)) for c, right in zip(completions, columns[column], strict=True)]

    reward.column = column
    return reward


def _first_word(text: str) -> str:
    words = re.findall(r"\w+", text.casefold())
    return words[0] if words else ""


def _numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]
