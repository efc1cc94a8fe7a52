"""A run's configuration: YAML file + command line -> typed dataclasses, checked before anything is loaded.

Every key is checked, model fields and training arguments included; a wrong one raises a single `ValueError` that names
the nearest legal key.
"""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import CONFIG_MAPPING, TrainingArguments

from .arguments import MANAGED_ARGUMENTS, PretrainingArguments


@dataclass
class TokenizerSection:
    """`path` opens an existing tokenizer; without it one is trained on the training split and kept in the run."""

    path: str | None = None
    algorithm: str = "bpe"
    vocab_size: int = 8192


@dataclass
class DataSection:
    """Where the text comes from and how it is cut into rows.

    `corpus` is anything that `hf_llm.data.load_corpus` takes: a name, a path or glob, a Hub dataset, a list of those.
    Lengths are in tokens. `validation_rows` bounds the rows of one evaluation.
    """

    corpus: Any = "python-stdlib"
    held_out_fraction: float = 0.05
    streaming: bool = False
    row_length: int = 512
    target_row_length: int | None = None
    validation_rows: int = 256
    num_proc: int | None = None
    cache_dir: str | None = None


@dataclass
class SamplesSection:
    """What is generated (decoder), filled (encoder) or restored (encoder-decoder) at each save."""

    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 64
    temperature: float = 0.7
    top_p: float = 0.95


@dataclass
class RunConfig:
    """Everything that defines a run.

    Attributes:
        output_dir: checkpoints, TensorBoard logs, report and final model.
        model: `model_type` and fields of that configuration class; `vocab_size`, special token ids and
            `max_position_embeddings` default to what tokenizer and data need.
        objective: `name` and options of `hf_llm.data.make_objective`.
        training: fields of `PretrainingArguments`.
        init_from: checkpoint whose weights the run starts from (same architecture).
        word_vectors: word2vec or GloVe file whose vectors the token embeddings start from, where a token is a word.
        resume: "auto" goes on from the last good checkpoint in `output_dir`, "never" refuses to, or a checkpoint path.
        seed: of initialisation, dropout, data order and mask draws.
        cpu_threads: threads of a CPU run; default: `accelerate launch` sets one, the run takes all cores instead.
    """

    output_dir: str
    model: dict
    training: dict
    objective: dict
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection = field(default_factory=DataSection)
    samples: SamplesSection = field(default_factory=SamplesSection)
    init_from: str | None = None
    word_vectors: str | None = None
    resume: str = "auto"
    seed: int = 0
    cpu_threads: int | None = None

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


class _Loader(yaml.SafeLoader):
    """YAML with `1e-3` as a number, as YAML 1.2 and JSON have it (PyYAML's YAML 1.1 reads a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


def load_yaml(text: str) -> Any:
    """Parse YAML safely. Raises `ValueError` with the parser's message."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error


def load_run_config(path: str | Path, overrides: list[str] = ()) -> RunConfig:
    """Read a run's YAML file and apply `--section.key value` overrides (`--section.key=value` works as well).

    Raises:
        ValueError: unreadable file, malformed override, unknown key, or value of the wrong type.
    """
    try:
        settings = load_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror or error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: expected a mapping of sections, got {type(settings).__name__}")
    for dotted, value in parse_overrides(overrides):
        _assign(settings, dotted, value)
    return run_config(settings)


def parse_overrides(words: list[str]) -> list[tuple[str, Any]]:
    """`["--a.b", "1", "--c=x"]` -> `[("a.b", 1), ("c", "x")]`; values are YAML (`null`, `true`, `[1, 2]`, `1e-3`)."""
    pairs, words = [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ValueError(f"unexpected argument {word!r}: overrides are written --section.key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise ValueError(f"--{key}: a value must follow")
            value = words.pop(0)
        pairs.append((key, load_yaml(value)))
    return pairs


def _assign(settings: dict, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for depth, name in enumerate(parents):
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise ValueError(f"--{dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    settings[last] = value


def run_config(settings: dict) -> RunConfig:
    """Build a `RunConfig` from nested dicts, checking every key and type."""
    config = _build(RunConfig, settings, "")
    check_model_fields(config.model)
    _check_training_fields(config.training)
    if not isinstance(config.objective.get("name"), str):
        raise ValueError("objective.name is missing: which objective of hf_llm.data.OBJECTIVES to train with")
    return config


def _build(cls: type, settings: Any, where: str) -> Any:
    if not isinstance(settings, dict):
        raise ValueError(f"{where}: expected a section (a mapping), got {settings!r}")
    hints = typing.get_type_hints(cls)
    check_keys(settings, hints, where)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in settings and f.default is f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"missing in the configuration: {', '.join(_join(where, name) for name in missing)}")
    values = {}
    for name, value in settings.items():
        key = _join(where, name)
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, key)
        else:
            check_type(value, hints[name], key)
            values[name] = value
    return cls(**values)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def check_keys(settings: dict, legal: typing.Collection[str], where: str) -> None:
    """Raise `ValueError` on the first key of `settings` that is not in `legal`, naming the nearest legal one."""
    for key in settings:
        if key not in legal:
            raise ValueError(f"unknown key {_join(where, str(key))!r}{suggestion(str(key), legal)}")


def suggestion(word: str, legal: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` where something legal is near, else the list of what is legal."""
    near = difflib.get_close_matches(word, legal, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; legal: {', '.join(sorted(legal))}"


def check_type(value: Any, hint: Any, where: str) -> None:
    """Check a YAML value against a simple type hint (`int`, `float`, `str | None`, `list[str]`, `dict`, `Any`)."""
    if not _matches(value, hint):
        name = getattr(hint, "__name__", None) if not typing.get_args(hint) else None
        raise ValueError(f"{where} = {value!r} is not of type {name or hint}")


def _matches(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(hint))
    if origin is list:
        (item,) = typing.get_args(hint)
        return isinstance(value, list) and all(_matches(entry, item) for entry in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, dict, types.NoneType):
        return isinstance(value, hint)
    return True  # enums, nested and custom types are checked by the class that takes them


def check_model_fields(model: dict) -> None:
    """Check the `model` section against the fields of its configuration class.

    A `PreTrainedConfig` takes unknown keyword arguments as attributes, so a typing error would pass in silence.
    """
    model_type = model.get("model_type")
    if model_type not in CONFIG_MAPPING:
        own = [name for name in CONFIG_MAPPING if name.startswith("hf_llm")]
        raise ValueError(f"model.model_type = {model_type!r} is unknown{suggestion(str(model_type), own)}")
    _check_config_fields(CONFIG_MAPPING[model_type], {k: v for k, v in model.items() if k != "model_type"}, "model")


def _check_config_fields(config_class: type, settings: dict, where: str) -> None:
    check_keys(settings, [f.name for f in dataclasses.fields(config_class) if f.init], where)
    for name, sub_class in config_class.sub_configs.items():
        if isinstance(settings.get(name), dict):
            _check_config_fields(sub_class, settings[name], f"{where}.{name}")


def _check_training_fields(training: dict) -> None:
    for key in training:
        if key in MANAGED_ARGUMENTS:
            raise ValueError(f"training.{key} is not set here: {MANAGED_ARGUMENTS[key]}")
    fields = {f.name: f for f in dataclasses.fields(PretrainingArguments) if f.init}
    check_keys(training, [name for name in fields if name not in MANAGED_ARGUMENTS], "training")
    own = {f.name for f in fields.values()} - {f.name for f in dataclasses.fields(TrainingArguments)}
    hints = typing.get_type_hints(PretrainingArguments)
    for key, value in training.items():
        if key in own or hints[key] in (int, float):
            check_type(value, hints[key], f"training.{key}")
