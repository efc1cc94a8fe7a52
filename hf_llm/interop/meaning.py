"""What a configuration of ours means: two configurations are the same model if their meanings are equal.

A field may be unset and stand for a value (`attention_scale=None`), or be set and say nothing because another field
turns it off (`num_experts_per_tok` without experts). Neither is a difference that an export could lose.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from .family import NOT_ARCHITECTURE, TOKENS


def _is_one(config) -> float:
    return 1.0


def _always(config) -> bool:
    return True


# field -> what `None` stands for
UNSET: dict[str, Callable[[Any], Any]] = {
    "attention_scale": lambda config: config.query_dim**-0.5,
    "alibi_scale": _is_one,
    "embedding_multiplier": _is_one,
    "residual_multiplier": _is_one,
    "logit_scale": _is_one,
    "qk_norm_bias": lambda config: config.norm_bias,
    "rope_layers": lambda config: [True] * config.num_hidden_layers,
    "layer_sharing": lambda config: list(range(config.num_hidden_layers)),
    "cross_attention_hidden_size": lambda config: config.hidden_size,
    "head_transform_act": lambda config: config.hidden_act,
}


def _has_experts(config) -> bool:
    return config.is_moe


def _has_dense_layers(config) -> bool:
    return not config.is_moe or "dense" in config.mlp_layer_types


def _positions(*kinds: str) -> Callable[[Any], bool]:
    return lambda config: config.position_embedding in kinds


# field -> whether it says anything in a configuration; fields that are not here always do
APPLIES: dict[str, Callable[[Any], bool]] = {
    "norm_bias": lambda config: config.norm_type == "layernorm",
    "qk_norm_bias": lambda config: config.qk_norm is not None and config.norm_type == "layernorm",
    "parallel_norms": lambda config: config.norm_placement == "parallel",
    "rope_parameters": _positions("rope"),
    "rope_interleaved": _positions("rope"),
    "rope_layers": _positions("rope"),
    "position_offset": _positions("learned", "sinusoidal"),
    "relative_attention_num_buckets": _positions("relative_bias"),
    "relative_attention_max_distance": _positions("relative_bias"),
    "alibi_scale": _positions("alibi"),
    "alibi_dtype": _positions("alibi"),
    "intermediate_size": _has_dense_layers,
    "mlp_bias": lambda config: _has_dense_layers(config) or config.shared_expert_intermediate_size is not None,
    "hidden_act": lambda config: config.swiglu_limit is None and config.swiglu_alpha is None,
    "mlp_layer_types": _has_experts,
    "num_experts_per_tok": _has_experts,
    "norm_topk_prob": _has_experts,
    "moe_intermediate_size": _has_experts,
    "shared_expert_intermediate_size": _has_experts,
    "shared_expert_gate": lambda config: config.is_moe and config.shared_expert_intermediate_size is not None,
    "router_bias": _has_experts,
    "expert_bias": _has_experts,
    "embedding_projection_bias": lambda config: config.embedding_projection is not None,
    "cross_attention_hidden_size": lambda config: config.add_cross_attention,
    "head_transform_bias": lambda config: config.head_transform,
    "head_transform_act": lambda config: config.head_transform,
    "classifier_transform_bias": lambda config: config.classifier_transform,
    "classifier_activation": lambda config: config.classifier_transform,
    "classifier_norm": lambda config: config.classifier_transform,
    "token_classifier_transform": lambda config: config.classifier_transform,
}


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """What decides the outputs of a model: the fields that say something, each with the value that it stands for;
    `encoder.x` and `decoder.x` for nested ones."""
    meaning = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name, None)  # some fields are of mixtures alone
        if isinstance(value, PreTrainedConfig):
            meaning |= {f"{f.name}.{name}": item for name, item in architecture(value).items()}
        elif f.name not in NOT_ARCHITECTURE and f.name not in TOKENS and APPLIES.get(f.name, _always)(config):
            if f.name == "rope_parameters":
                value = _rope(config)
            elif value is None and f.name in UNSET:
                value = UNSET[f.name](config)
            meaning[f.name] = value
    return meaning


def _rope(config) -> dict[str, dict | None]:
    """The RoPE parameters of each layer type that the model has."""
    nested = bool(config.nested_rope_parameter_keys(config.rope_parameters))
    parameters = {t: config.rope_parameters.get(t) if nested else config.rope_parameters for t in config.layer_types}
    return {t: None if p is None else {"partial_rotary_factor": 1.0} | p for t, p in parameters.items()}
