"""Pieces of tables that families share."""

import copy
import math
from collections.abc import Callable
from typing import Any

from .family import Field, Group, renamed, same


def experts(native: str = "num_experts") -> Field:
    """The number of experts, for a family that always has them."""

    def to_native(number: int | None) -> int:
        if number is None:
            raise ValueError("`num_experts=None`: it has experts")
        return number

    return Field(native, ("num_experts",), to_native=to_native)


def off(name: str, why: str) -> Group:
    """A native switch that must be off (or absent), for the core has no place for it."""

    def to_ours(native) -> dict[str, Any]:
        if value := getattr(native, name, None):
            raise ValueError(f"`{name}={value!r}` is not supported: {why}.")
        return {}

    return Group((name,), (), to_ours, lambda ours: {})


def one_if_unset(native: str, ours: str) -> Field:
    """A factor: unset on our side, 1.0 on the native one."""
    return Field(native, (ours,), to_native=lambda value: 1.0 if value is None else value)


def inverse(function: Callable[[float], float], value: float, guess: float) -> float:
    """The number near `guess` of which `function` makes `value` to the bit, if any; of several the one written
    shortest."""
    near = (round(guess, 6), guess, math.nextafter(guess, 0), math.nextafter(guess, math.inf))
    return min((n for n in near if function(n) == value), key=lambda n: len(repr(n)), default=guess)


def rope(partial: bool = False) -> Group:
    """`rope_parameters`, for a family whose RoPE rotates the whole head or (`partial`) a fraction of it."""

    def to_ours(native) -> dict[str, Any]:
        parameters = copy.deepcopy(native.rope_parameters)
        _check_fraction(parameters, partial)
        if parameters.get("partial_rotary_factor") == 1.0:
            del parameters["partial_rotary_factor"]
        return {"rope_parameters": parameters}

    def to_native(ours) -> dict[str, Any]:
        if ours.position_embedding != "rope":
            raise ValueError(f"`position_embedding={ours.position_embedding!r}`: it has rope.")
        if ours.nested_rope_parameter_keys(ours.rope_parameters):
            raise ValueError("`rope_parameters` differ by layer type.")
        _check_fraction(ours.rope_parameters, partial)
        whole = {"partial_rotary_factor": 1.0} if partial else {}  # unset, it would be the family's fraction
        return {"rope_parameters": whole | copy.deepcopy(ours.rope_parameters)}

    return Group(("rope_parameters",), ("rope_parameters",), to_ours, to_native)


def _check_fraction(parameters: dict[str, Any], partial: bool) -> None:
    fraction = parameters.get("partial_rotary_factor", 1.0)
    if fraction != 1.0 and not partial:
        raise ValueError(f"`rope_parameters` with `partial_rotary_factor={fraction}`: it rotates the whole head.")


def _rope_by_layer_to_ours(native) -> dict[str, Any]:
    for parameters in native.rope_parameters.values():
        _check_fraction(parameters, partial=False)
    return {"rope_parameters": copy.deepcopy(native.rope_parameters)}


def _rope_by_layer_to_native(ours) -> dict[str, Any]:
    if ours.position_embedding != "rope":
        raise ValueError(f"`position_embedding={ours.position_embedding!r}`: it has rope.")
    parameters = ours.rope_parameters
    if not ours.nested_rope_parameter_keys(parameters):
        parameters = dict.fromkeys(("full_attention", "sliding_attention"), parameters)
    return {"rope_parameters": copy.deepcopy(parameters)}


def _head_dim_to_ours(native) -> dict[str, Any]:
    return {"head_dim": getattr(native, "head_dim", None)}


def _head_dim_to_native(ours) -> dict[str, Any]:
    derived = ours.head_dim * ours.num_attention_heads == ours.hidden_size
    return {} if derived else {"head_dim": ours.head_dim}


def _slides(config) -> bool:
    return "sliding_attention" in config.layer_types


def _everywhere_to_ours(native) -> dict[str, Any]:
    window = native.sliding_window
    return {"sliding_window": window, "layer_types": None if window is None else "S"}


def _everywhere_to_native(ours) -> dict[str, Any]:
    return {"sliding_window": ours.sliding_window}


def _by_layer_to_ours(native) -> dict[str, Any]:
    return {
        "sliding_window": native.sliding_window if _slides(native) else None,
        "layer_types": list(native.layer_types),
    }


def _by_layer_to_native(ours) -> dict[str, Any]:
    window = {"sliding_window": ours.sliding_window} if _slides(ours) else {}
    return {"layer_types": list(ours.layer_types)} | window


SIZES = same(
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
    "hidden_act",
)
# What matters to training alone.
TRAINING = (
    *same("initializer_range", "use_cache"),
    Field("attention_dropout", ("attention_dropout",), to_ours=lambda probability: probability or 0.0),
)
# In many families `head_dim` is not a declared field, but honoured where config.json has it.
HEAD_DIM = Group(("head_dim",), ("head_dim",), _head_dim_to_ours, _head_dim_to_native)
# One window in every layer, or in none.
WINDOW_EVERYWHERE = Group(
    ("sliding_window",), ("sliding_window", "layer_types"), _everywhere_to_ours, _everywhere_to_native
)
# A window in the layers that `layer_types` names.
WINDOW_BY_LAYER = Group(
    ("sliding_window", "layer_types"), ("sliding_window", "layer_types"), _by_layer_to_ours, _by_layer_to_native
)
# Experts in every layer, `intermediate_size` wide.
EXPERTS_EVERYWHERE = (
    Field("intermediate_size", ("moe_intermediate_size", "intermediate_size")),
    *same("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef"),
)
# RoPE parameters of their own for layers that slide and layers that do not.
ROPE_BY_LAYER = Group(("rope_parameters",), ("rope_parameters",), _rope_by_layer_to_ours, _rope_by_layer_to_native)
RMS_EPS = renamed(norm_eps="rms_norm_eps")
LAYER_NORM_EPS = renamed(norm_eps="layer_norm_eps")

# Norms before each branch, and before both.
PRE_NORMS = {
    "layers.{i}.self_attn_norm": "layers.{i}.input_layernorm",
    "layers.{i}.mlp_norm": "layers.{i}.post_attention_layernorm",
}
HEADS = {"ForCausalLM": {}, "ForSequenceClassification": {}, "ForTokenClassification": {}}
HEADS_WITH_QA = HEADS | {"ForQuestionAnswering": {"score": "qa_outputs"}}
