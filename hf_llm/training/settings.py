"""Settings of a recipe: YAML file + command line -> typed dataclasses, checked before anything is loaded.

A wrong key or value raises a single `ValueError` that names it and the nearest legal key or the type.
"""

import contextlib
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from ..imports import import_variants


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where PyYAML's 1.1 would surprise: `1e-3` is a number, and `no` (as in `eval_strategy: no`) a word."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


def load_yaml(text: str, source: str = "text") -> Any:
    """Parse YAML safely. Raises `ValueError`, one line: `source`, the place in it, and what is wrong there."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{source}{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


@contextlib.contextmanager
def opening(name: str, path: str) -> Iterator[None]:
    """Raise ValueError, one line with setting and value, where no checkpoint or tokenizer is at a path."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, OSError) and not Path(path).exists():
            reason = "no such folder, and no such repository on the Hub, or it cannot be reached"
        raise ValueError(f"{name} = {path!r} cannot be opened: {reason}") from error


def load_settings(path: str | Path, overrides: list[str] = ()) -> dict:
    """Read a YAML file of settings and apply `--section.key value` overrides (`--section.key=value` works as well).

    Raises:
        ValueError: unreadable file, malformed YAML or override.
    """
    try:
        settings = load_yaml(Path(path).read_text(encoding="utf-8"), f"--config {path}")
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror or error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: expected a mapping of sections, got {type(settings).__name__}")
    for dotted, value in parse_overrides(overrides):
        *parents, last = dotted.split(".")
        section = settings
        for depth, name in enumerate(parents, start=1):
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ValueError(f"--{dotted}: {'.'.join(parents[:depth])} is a value, not a section")
        section[last] = value
    if "imports" in settings:
        import_variants(settings["imports"])
    return settings


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`["--a.b", "1", "--c=x"]` -> `[("a.b", 1), ("c", "x")]`; values are YAML (`null`, `true`, `[1, 2]`, `1e-3`)."""
    pairs, words = [], iter(words)
    for word in words:
        if not word.startswith("--") or len(word) == 2:
            raise ValueError(f"unexpected argument {word!r}: overrides are written --section.key value")
        key, equals, value = word[2:].partition("=")
        if not equals and (value := next(words, None)) is None:
            raise ValueError(f"--{key}: a value must follow")
        pairs.append((key, load_yaml(value, f"--{key} {value}")))
    return pairs


def build_section(cls: type, settings: Any, where: str = "") -> Any:
    """An instance of the dataclass `cls` from nested dicts; sections are dataclasses among its fields.

    Args:
        where: dotted name of the section, for messages.

    Raises:
        ValueError: unknown key (the nearest legal one is named), missing key, or value of the wrong type.
    """
    if not isinstance(settings, dict):
        raise ValueError(f"{where or 'configuration'}: expected a section (a mapping), got {settings!r}")
    hints = typing.get_type_hints(cls)
    check_keys(settings, hints, where)
    missing = [_join(where, f.name) for f in dataclasses.fields(cls) if f.name not in settings and _is_required(f)]
    if missing:
        raise ValueError(f"missing in the configuration: {', '.join(missing)}")
    values = {}
    for name, value in settings.items():
        key, section = _join(where, name), _section_of(hints[name])
        if section is not None and value is not None:
            value = build_section(section, value, key)
        else:
            check_type(value, hints[name], key)
            check_range(name, value, key)
        values[name] = value
    return cls(**values)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _section_of(hint: Any) -> type | None:
    """The dataclass that a field of this type is a section of."""
    return next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def check_keys(settings: dict, legal: Collection[str], where: str) -> None:
    """Raise `ValueError` on the first key of `settings` that is not in `legal`, naming the nearest legal one."""
    for key in settings:
        if key not in legal:
            raise ValueError(f"unknown key {_join(where, str(key))!r}{suggestion(str(key), legal)}")


def suggestion(word: str, legal: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something legal is near or contains the word, else the list of what is legal."""
    near = difflib.get_close_matches(word, legal, n=1, cutoff=0.6)
    if near and word in near[0]:  # a part of a name, such as `classification`, may be that of several
        near = [name for name in legal if word in name]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; legal: {', '.join(sorted(legal))}"


def check_type(value: Any, hint: Any, where: str) -> None:
    """Check a YAML value against a simple type hint (`int`, `float`, `str | None`, `list[str]`, `dict`, `Any`)."""
    if not _matches(value, hint):
        raise ValueError(f"{where} = {value!r} is not of type {_type_text(hint)}")


# numbers of all sections and of trainers' arguments, by the names of their fields -> what they must be
RANGES = (
    (("row_length",), lambda value: value >= 8, "at least 8"),
    (("target_row_length",), lambda value: value >= 4, "at least 4"),
    (("held_out_fraction",), lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    (("top_p",), lambda value: 0 < value <= 1, "greater than 0 and at most 1"),
    (("max_steps",), lambda value: value == -1 or value >= 1, "at least 1, or -1 for num_train_epochs"),
    (
        (
            "cpu_threads",
            "num_proc",
            "validation_rows",
            "max_train_samples",
            "max_validation_samples",
            "max_test_samples",
            "max_new_tokens",
            "max_length",
            "max_source_length",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "global_batch_size",
            "gradient_accumulation_steps",
            "save_total_limit",
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        ("num_train_epochs", "eval_steps", "save_steps", "logging_steps"),
        lambda value: value > 0,
        "greater than 0",
    ),
    (
        ("seed", "count", "temperature", "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "beta"),
        lambda value: value >= 0,
        "at least 0",
    ),
)


def check_range(name: str, value: Any, where: str) -> None:
    """Raise ValueError where a number is not what `RANGES` says of the field `name`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    for names, legal, meaning in RANGES:
        if name in names and not legal(value):
            raise ValueError(f"{where} = {value!r} must be {meaning}")


def _type_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _matches(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if origin is list:
        (item,) = typing.get_args(hint)
        return isinstance(value, list) and all(_matches(entry, item) for entry in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if hint in (bool, str, dict, list, types.NoneType):
        return isinstance(value, hint)
    return True  # enums, nested and custom types are checked by the class that takes them


def check_training_fields(training: dict, arguments_class: type, managed: dict[str, str]) -> None:
    """Check a `training` section against the arguments class of its trainer.

    Args:
        arguments_class: `TrainingArguments` or a dataclass derived from it.
        managed: fields that a configuration does not set, and what sets them instead.

    Raises:
        ValueError: unknown or managed key, or a number field whose value is no number or out of range.
    """
    for key in training:
        if key in managed:
            raise ValueError(f"training.{key} is not set here: {managed[key]}")
    legal = {f.name for f in dataclasses.fields(arguments_class) if f.init} - managed.keys()
    check_keys(training, legal, "training")
    own = legal - {f.name for f in dataclasses.fields(TrainingArguments)}
    hints = typing.get_type_hints(arguments_class)
    for key, value in training.items():
        if key in own or hints[key] in (int, float):
            check_type(value, hints[key], f"training.{key}")
        check_range(key, value, f"training.{key}")


# ---- help -----------------------------------------------------------------------------------------------------------

# an entry of a docstring: `name: text`, `name, name: text` or transformers' `name (type):` and a text below
_NAMES = r"^ *([a-z]\w*(?:, \w+)*)(?: \(.*\))?:\s"
_ENTRY = re.compile(rf"{_NAMES}+([^\n]+(?:\n(?!\s*\n|{_NAMES.replace('(', '(?:', 1)})[^\n]+)*)", re.M)


def describe(cls: type, where: str = "", left_out: Collection[str] = ()) -> Iterator[str]:
    """For each key of the dataclass `cls` and its sections a line: dotted name, type, default, what it is for."""
    texts = {}
    for base in reversed(cls.__mro__):
        for names, text in _ENTRY.findall(inspect.cleandoc(base.__doc__ or "")):
            texts |= dict.fromkeys(names.split(", "), text)
    for field in dataclasses.fields(cls):
        key, section = _join(where, field.name), None if where else _section_of(field.type)
        if section is not None:
            yield from describe(section, key)
        elif field.init and field.name not in left_out:
            text = " ".join(str(field.metadata.get("help") or texts.get(field.name, "")).split())
            default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
            yield f"{key}: {_type_text(field.type)}{default}" + (f"\n    {text}" if text else "")
