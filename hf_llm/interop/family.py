"""What a family is: the fields of its configuration, the names of its weights, its classes. A table, no code.

A family is written from our side. `fields` says which native field holds which of ours; `constants` what all its
models have in common; whatever is in neither must have its neutral value for a model to be expressible (`NEUTRAL`, a
plain Llama). `weights` renames modules; where the layout differs as well, a `Rule` has an operation.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..models.configuration import LLMDecoderConfig, LLMEncoderConfig, LLMStackConfig
from .ops import Op, rename


# The neutral value of every architectural field: what a family has where its table says nothing.
NEUTRAL: dict[str, Any] = {
    f.name: f.default
    for config_class in (LLMStackConfig, LLMEncoderConfig, LLMDecoderConfig)
    for f in dataclasses.fields(config_class)
    if f.default is not dataclasses.MISSING
} | {"qk_norm": None, "num_key_value_heads": None}

# Fields that say nothing about what a model computes: training, tokens, bookkeeping of the base class.
NOT_ARCHITECTURE = frozenset(
    """
    residual_dropout embedding_dropout attention_dropout activation_dropout classifier_dropout router_jitter_noise
    router_aux_loss_coef router_z_loss_coef output_router_logits initializer_range embedding_initializer_range
    residual_init pad_token_id bos_token_id eos_token_id use_cache hf_llm_version auto_map transformers_version
    architectures output_hidden_states return_dict dtype chunk_size_feed_forward is_encoder_decoder id2label label2id
    problem_type
    """.split()
)
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
# Fields that only one kind of head reads.
LANGUAGE_HEADS = ("ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")
LANGUAGE_HEAD_FIELDS = frozenset(
    "lm_head_bias logit_scale final_logit_softcapping head_transform head_transform_bias head_transform_act".split()
)
TASK_HEAD_FIELDS = frozenset(
    """
    classifier_pooling classifier_transform classifier_transform_bias classifier_activation classifier_norm
    classifier_bias token_classifier_transform
    """.split()
)


@dataclass(frozen=True)
class Field:
    """One native field and the fields of ours that it sets.

    native: its name (a field that a native configuration does not have counts as `None`).
    ours: names (of an encoder-decoder: `encoder.x`, `decoder.x`, `x`) that all take its value.
    to_ours, to_native: conversions of the value.
    """

    native: str
    ours: tuple[str, ...]
    to_ours: Callable[[Any], Any] = lambda value: value
    to_native: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Group:
    """Fields that cannot be converted one by one.

    to_ours: native configuration -> {our field: value}; to_native: our configuration -> {native field: value}.
    native, ours: the names that they account for.
    """

    native: tuple[str, ...]
    ours: tuple[str, ...]
    to_ours: Callable[[Any], dict[str, Any]]
    to_native: Callable[[Any], dict[str, Any]]


def read_native(fields: Iterable[Field | Group], native: Any) -> dict[str, Any]:
    """The values of our fields that a native configuration has."""
    values = {}
    for entry in fields:
        if isinstance(entry, Group):
            values |= entry.to_ours(native)
        else:
            values |= dict.fromkeys(entry.ours, entry.to_ours(getattr(native, entry.native, None)))
    return values


def write_native(fields: Iterable[Field | Group], ours: Any) -> dict[str, Any]:
    """The values of native fields that say what a configuration of ours does."""
    values = {}
    for entry in fields:
        if isinstance(entry, Group):
            values |= entry.to_native(ours)
        else:  # of a name that this configuration does not have: None
            value = functools.reduce(lambda config, part: getattr(config, part, None), entry.ours[0].split("."), ours)
            values[entry.native] = entry.to_native(copy.deepcopy(value))
    return values


def same(*names: str) -> tuple[Field, ...]:
    """Fields that have one name and one meaning on both sides."""
    return tuple(Field(name, (name,)) for name in names)


def renamed(**names: str) -> tuple[Field, ...]:
    """`renamed(norm_eps="rms_norm_eps")`: our name = native name."""
    return tuple(Field(native, (ours,)) for ours, native in names.items())


@dataclass(frozen=True)
class Rule:
    """Weights whose layout differs: our and native names (patterns with `{i}` for a number), and an `Op`."""

    ours: tuple[str, ...]
    native: tuple[str, ...]
    op: Op = rename


@dataclass(frozen=True)
class Family:
    """A native architecture.

    Attributes:
        name: transformers' `model_type`.
        stack: "decoder", "encoder" or "encoder_decoder".
        fields: configuration, both ways (`Field`, `Group`).
        constants: our fields that have this value in every model of the family.
        requires: native fields that must have this value: what the family's code supports and the core does not.
        ignores: native fields that do not change what a model computes.
        legacy: native configuration -> fields that it no longer has and other engines still read; written on export.
        weights: our module or parameter -> its native name, below the base model on both sides, `{i}` for a number.
            A name that no row matches is the same on both sides. Where names depend on the model, a function of our
            configuration that gives such a table.
        rules: weights with an operation.
        heads: for each of our heads ("ForCausalLM", ...), our module -> its native name, both from the top.
        unused: patterns of native weights that we have no place for (listed to the user on import).
        derived: patterns of native weights that are computed, not learned: compared on import, filled in on export.
        undecided: our fields that no native configuration holds, so that any value passes: what the weights decide
            (T5's tied head), what changes nothing (the length of relative positions).
        base_arguments: arguments of the native class without a head (BERT's has a pooler that no head but one reads).
        refuse: looks at a native configuration and returns why it cannot be imported, or None.
    """

    name: str
    stack: str
    fields: tuple[Field | Group, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()
    legacy: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    weights: Mapping[str, str] | Callable[[Any], Mapping[str, str]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    heads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    derived: Mapping[str, Callable[[torch.Size], torch.Tensor]] = field(default_factory=dict)
    undecided: tuple[str, ...] = ()
    base_arguments: Mapping[str, Any] = field(default_factory=dict)
    refuse: Callable[[Any], str | None] = lambda config: None
