"""Pieces of tables that families share: fields, constants, names of weights and of heads."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from .family import Family, Field, Group, Rule, renamed, same
from .ops import Op


# ---- fields ---------------------------------------------------------------------------------------------------------


def switch(native: str, ours: str, on: Any, off: Any = None) -> Field:
    """A native flag that chooses between two values of a field of ours."""
    return Field(native, (ours,), lambda flag: on if flag else off, lambda value: value == on)


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


def rope(partial: bool = False, by_layer: bool = False) -> Group:
    """`rope_parameters`.

    partial: RoPE rotates a fraction of each head, not the whole.
    by_layer: layers that slide and layers that do not have parameters of their own.
    """

    def to_ours(native) -> dict[str, Any]:
        parameters = copy.deepcopy(native.rope_parameters)
        nested = by_layer and "rope_type" not in parameters  # transformers 5.16 gives flat ones
        for each in parameters.values() if nested else (parameters,):
            _check_fraction(each, partial)
            if each.get("partial_rotary_factor") == 1.0 and not by_layer:
                del each["partial_rotary_factor"]
        return {"rope_parameters": parameters}

    def to_native(ours) -> dict[str, Any]:
        if ours.position_embedding != "rope":
            raise ValueError(f"`position_embedding={ours.position_embedding!r}`: it has rope.")
        parameters, nested = ours.rope_parameters, ours.nested_rope_parameter_keys(ours.rope_parameters)
        if by_layer:
            types = ("full_attention", "sliding_attention")
            return {"rope_parameters": copy.deepcopy(parameters if nested else dict.fromkeys(types, parameters))}
        if nested:
            raise ValueError("`rope_parameters` differ by layer type.")
        _check_fraction(parameters, partial)
        whole = {"partial_rotary_factor": 1.0} if partial else {}  # unset, it would be the family's fraction
        return {"rope_parameters": whole | copy.deepcopy(parameters)}

    return Group(("rope_parameters",), ("rope_parameters",), to_ours, to_native)


def _check_fraction(parameters: dict[str, Any], partial: bool) -> None:
    fraction = parameters.get("partial_rotary_factor", 1.0)
    if fraction != 1.0 and not partial:
        raise ValueError(f"`rope_parameters` with `partial_rotary_factor={fraction}`: it rotates the whole head.")


def _slides(config) -> bool:
    return "sliding_attention" in config.layer_types


def _everywhere_to_ours(native) -> dict[str, Any]:
    window = native.sliding_window
    return {"sliding_window": window, "layer_types": None if window is None else "S"}


def _by_layer_to_ours(native) -> dict[str, Any]:
    window = native.sliding_window if _slides(native) else None
    return {"sliding_window": window, "layer_types": list(native.layer_types)}


def _by_layer_to_native(ours) -> dict[str, Any]:
    window = {"sliding_window": ours.sliding_window} if _slides(ours) else {}
    return {"layer_types": list(ours.layer_types)} | window


def _head_dim_to_native(ours) -> dict[str, Any]:
    derived = ours.head_dim * ours.num_attention_heads == ours.hidden_size
    return {} if derived else {"head_dim": ours.head_dim}


def narrow_embeddings(native: str, projection: str) -> Group:
    """The width of the embeddings, which a projection (`embedding_projection`) widens where it is another than the
    model's."""

    def to_ours(config) -> dict[str, Any]:
        width = getattr(config, native)
        if width == config.hidden_size:
            return {}
        return {"embedding_size": width, "embedding_projection": projection}

    return Group(
        (native,),
        ("embedding_size", "embedding_projection"),
        to_ours,
        lambda ours: {native: ours.embedding_size or ours.hidden_size},
    )


SIZES = same("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")
DENSE = same("intermediate_size")
BIASES = same("attention_bias", "mlp_bias")
# What matters to training alone.
TRAINING = (
    *same("initializer_range", "use_cache"),
    Field("attention_dropout", ("attention_dropout",), to_ours=lambda probability: probability or 0.0),
)
# In many families `head_dim` is not a declared field, but honoured where config.json has it.
HEAD_DIM = Group(
    ("head_dim",), ("head_dim",), lambda native: {"head_dim": getattr(native, "head_dim", None)}, _head_dim_to_native
)
# One window in every layer, or in none.
WINDOW_EVERYWHERE = Group(
    ("sliding_window",),
    ("sliding_window", "layer_types"),
    _everywhere_to_ours,
    lambda ours: {"sliding_window": ours.sliding_window},
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
# The names of GPT-2's time.
N_SIZES = renamed(hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head")
N_DROPOUTS = renamed(residual_dropout="resid_pdrop", embedding_dropout="embd_pdrop", attention_dropout="attn_pdrop")


# ---- constants ------------------------------------------------------------------------------------------------------

LAYER_NORM = {"norm_type": "layernorm", "norm_bias": True}
PLAIN = {"feed_forward": "plain", "mlp_bias": True}
POST_NORM = {"norm_placement": "post", "final_norm": False}
LEARNED = {"position_embedding": "learned"}


# ---- weights --------------------------------------------------------------------------------------------------------

_PARTS = {name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
_PARTS |= {f"cross_{name}": f"cross_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
_PARTS |= {name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}


def layer(native: str, **names: str) -> dict[str, str]:
    """The weights of layer `{i}`: `layer("h.{i}", o_proj="attn.out_proj", mlp_norm="ln_2")`: our module = native one
    below `native`."""
    return {f"layers.{{i}}.{_PARTS.get(ours, ours)}": f"{native}.{name}" for ours, name in names.items()}


def qkv(native: str, op: Op) -> Rule:
    """Queries, keys and values in one native module."""
    return Rule(tuple(f"layers.{{i}}.self_attn.{name}_proj" for name in "qkv"), (native,), op)


# Norms before each branch, and before both.
PRE_NORMS = layer("layers.{i}", self_attn_norm="input_layernorm", mlp_norm="post_attention_layernorm")
MEGATRON_MLP = {"up_proj": "mlp.dense_h_to_4h", "down_proj": "mlp.dense_4h_to_h"}


# ---- heads ----------------------------------------------------------------------------------------------------------

QA = {"ForQuestionAnswering": {"score": "qa_outputs"}}
HEADS = {"ForCausalLM": {}, "ForSequenceClassification": {}, "ForTokenClassification": {}}
HEADS_WITH_QA = HEADS | QA
# Where token classification scores by a module called `classifier`.
GPT_HEADS = HEADS_WITH_QA | {"ForTokenClassification": {"score": "classifier"}}


def two_layers(dense: str, score: str = "classifier") -> dict[str, str]:
    """A task head of two layers."""
    return {"transform.dense": dense, "score": score}


# ---- whole families -------------------------------------------------------------------------------------------------


def llama_like(
    name: str,
    *fields: Field | Group,
    norm_eps: str | None = "rms_norm_eps",
    hidden_act: str | None = "hidden_act",
    **table: Any,
) -> Family:
    """
    A decoder whose fields and weights have Llama's names.

    Args:
        fields: beside the sizes and what matters to training alone.
        norm_eps, hidden_act: the native names of these fields; None for a family in which they are fixed.
        table: of `Family`.
    """
    names = {ours: native for ours, native in (("norm_eps", norm_eps), ("hidden_act", hidden_act)) if native}
    lengths = same("num_key_value_heads", "max_position_embeddings")
    fields = (*SIZES, *lengths, *TRAINING, *renamed(**names), *fields)
    return Family(name, "decoder", fields, **{"weights": PRE_NORMS, "heads": HEADS_WITH_QA, **table})


# ---- encoder-decoders -----------------------------------------------------------------------------------------------

HALVES = ("encoder", "decoder")


def both(*names: str) -> tuple[str, ...]:
    """The fields of these names in either half."""
    return tuple(f"{half}.{name}" for name in names for half in HALVES)


def in_both(**names: str) -> tuple[Field, ...]:
    """`in_both(hidden_size="d_model")`: our field in both halves = native field."""
    return tuple(Field(native, both(ours)) for ours, native in names.items())


def both_have(**values: Any) -> dict[str, Any]:
    """The same values in both halves, for `Family.constants`."""
    return {f"{half}.{name}": value for name, value in values.items() for half in HALVES}


def halves(weights: Callable[[str], Mapping[str, str]]) -> dict[str, str]:
    """The weights of both halves, from a function that gives those of one (named without the half)."""
    return {f"{half}.{ours}": f"{half}.{native}" for half in HALVES for ours, native in weights(half).items()}
