"""The configurations of any family, both ways, by its table."""

import dataclasses
import typing
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from ..models.configuration import LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig
from .family import (
    LANGUAGE_HEAD_FIELDS,
    LANGUAGE_HEADS,
    NEUTRAL,
    NOT_ARCHITECTURE,
    TASK_HEAD_FIELDS,
    TOKENS,
    Family,
    read_native,
    write_native,
)
from .meaning import architecture


CONFIGS = {"encoder": LLMEncoderConfig, "decoder": LLMDecoderConfig, "encoder_decoder": LLMEncoderDecoderConfig}
CARRIED = ("id2label", "label2id", "problem_type", "dtype")  # what a configuration says beside the architecture


class InteropError(ValueError):
    """A checkpoint or model that cannot be exchanged; the message says why."""


def to_our_config(family: Family, native: PreTrainedConfig, **known) -> PreTrainedConfig:
    """Our configuration of a native one; `known` fields of ours are not read from it. It remembers the family as
    `native_family`. Raises InteropError, naming the field, if the core has no place for it."""
    reason = family.refuse(native)
    for name, value in family.requires.items():
        if getattr(native, name, value) != value:
            reason = f"`{name}={getattr(native, name)!r}`: only {value!r} is supported"
    if reason:
        raise InteropError(f"{family.name} model cannot be imported: {reason}.")
    values = dict(family.constants)
    carried = {name: getattr(native, name) for name in (*TOKENS, *CARRIED) if getattr(native, name, None) is not None}
    try:
        values |= read_native(family.fields, native) | carried | known
        return CONFIGS[family.stack](**_nest(family, values), native_family=family.name)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise InteropError(f"{family.name} model cannot be imported: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _nest(family: Family, values: dict[str, Any]) -> dict[str, Any]:
    """`{"encoder.x": 1, "y": 2}` -> `{"encoder": {"x": 1}, "y": 2}`, neutral values filled in."""
    neutral = {name: value for name, value in NEUTRAL.items() if name not in NOT_ARCHITECTURE}
    if family.stack != "encoder_decoder":
        return _known(CONFIGS[family.stack], neutral) | values
    del neutral["tie_word_embeddings"]  # the halves follow the whole
    nested = {half: _known(CONFIGS[half], neutral) for half in ("encoder", "decoder")}
    for name, value in values.items():
        half, _, field = name.partition(".")
        if field:
            nested[half][field] = value
        else:
            nested[name] = value
    nested["decoder"]["add_cross_attention"] = True
    return nested


def _known(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(config_class)}
    return {name: value for name, value in values.items() if name in names}


def matters(family: Family, head: str | None, name: str) -> bool:
    """Whether a difference in one of our fields would be lost in an export with this head (`None`: with any)."""
    half, _, leaf = name.rpartition(".")
    if name in family.undecided:
        return False
    if leaf in LANGUAGE_HEAD_FIELDS:
        return half != "encoder" and head in (None, *LANGUAGE_HEADS)
    if leaf in TASK_HEAD_FIELDS:
        return not half and head not in ("Model", *LANGUAGE_HEADS)
    return not (half and leaf == "tie_word_embeddings")


def to_native_config(family: Family, ours: PreTrainedConfig, head: str | None = None) -> PreTrainedConfig:
    """
    The native configuration of one of ours, for a model with the given head (`None`: one that serves all heads).

    Raises InteropError, naming each field, if the family cannot express it: the native configuration is read back, and
    every difference is a field that would be lost.
    """
    values = dict(family.requires)
    try:
        values |= write_native(family.fields, ours)
        values |= {name: getattr(ours, name) for name in TOKENS if hasattr(ours, name)}
        values |= {name: getattr(ours, name) for name in CARRIED if getattr(ours, name, None) is not None}
        native = _native_config(family, values)
        vars(native).update(family.legacy(native))
        read_back = architecture(to_our_config(family, native))
    except (StrictDataclassError, TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise InteropError(f"{family.name} cannot express this model: {_one_line(error)}") from error
    meant = architecture(ours)
    names = dict.fromkeys((*meant, *read_back))
    lost = [name for name in names if meant.get(name) != read_back.get(name) and matters(family, head, name)]
    lost = [name for name in lost if name in meant and name in read_back] or lost  # not what depends on another one
    if lost:
        details = "; ".join(f"`{n}={meant.get(n)!r}` (would become {read_back.get(n)!r})" for n in lost)
        raise InteropError(f"{family.name} cannot express {details}.")
    return native


def _native_config(family: Family, values: dict[str, Any]) -> PreTrainedConfig:
    """The native configuration with these values; whole numbers are made floats where it takes nothing else."""
    config_class = transformers.CONFIG_MAPPING[family.name]
    types = {f.name: typing.get_args(f.type) or (f.type,) for f in dataclasses.fields(config_class)}
    for name, value in values.items():
        if type(value) is int and float in types.get(name, ()) and int not in types[name]:
            values[name] = float(value)
    return config_class(**values)
