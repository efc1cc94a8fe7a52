"""Named architectures: one JSON file each, with its source, its number of parameters and its configuration.

    source       paper and section, and the published checkpoint whose sizes it has
    published    the figure that the paper prints, where there is no checkpoint to count
    parameters   of the model with its language-modeling head, each tied weight once
    config       what differs from the defaults of its configuration class

`published` and `parameters` are checked in the tests.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from ..models.configuration import LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig


CONFIGS = {c.model_type: c for c in (LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig)}


@dataclass(frozen=True)
class Preset:
    """One file of this directory."""

    source: str
    parameters: int
    config: dict
    published: str | None = None


def preset_names() -> list[str]:
    """The names of all presets, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def nearest_names(name: str) -> list[str]:
    """The presets whose names are most like `name`, best first."""
    return difflib.get_close_matches(name, preset_names(), n=8, cutoff=0.0)


def load_preset(name: str) -> Preset:
    """The preset of that name. Raises ValueError, with the names that are nearest, if there is none."""
    if name not in preset_names():
        raise ValueError(f"There is no preset {name!r}. The nearest: {', '.join(nearest_names(name))}.")
    return Preset(**json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8")))


def preset_config(name: str, **overrides) -> PreTrainedConfig:
    """The configuration of a preset.

    overrides: fields to change; for an encoder-decoder, `encoder` and `decoder` are dicts of the fields to change.
    """
    values = dict(load_preset(name).config)
    config_class = CONFIGS[values.pop("model_type")]
    for field, value in overrides.items():
        halves = isinstance(value, dict) and field in ("encoder", "decoder")
        values[field] = {**values[field], **value} if halves else value
    return config_class(**values)


def _from_preset(cls, name: str, **overrides) -> PreTrainedConfig:
    """
    The configuration of a named architecture, such as `LLMDecoderConfig.from_preset("llama-3-8b")`.

    Args:
        name: one of `hf_llm.presets.preset_names()`.
        overrides: fields to change, such as `vocab_size=50304`.

    Raises:
        ValueError: no such preset, or one of another stack.
    """
    model_type = load_preset(name).config["model_type"]
    if model_type != cls.model_type:
        raise ValueError(f"The preset {name!r} is one of {CONFIGS[model_type].__name__}, not of {cls.__name__}.")
    return preset_config(name, **overrides)


def attach() -> None:
    """Give the configuration classes their `from_preset` (the files of `models/` travel without this directory)."""
    for config_class in CONFIGS.values():
        config_class.from_preset = classmethod(_from_preset)
