"""What a configuration must satisfy, checked once, when it is made. Each message names the field, its value and what
is legal."""

import functools
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .feedforward import FEED_FORWARDS
from .latent_attention import ATTENTIONS  # with its own row
from .layer import PLACEMENTS
from .norms import NORMS
from .positions import POSITIONS


TABLES = (NORMS, PLACEMENTS, POSITIONS, ATTENTIONS, FEED_FORWARDS)  # of the fields that name a variant
ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)
LAYER_TYPES = ("full_attention", "sliding_attention")

LATENT_FIELDS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
AT_LEAST_ONE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "sliding_window",
    "embedding_size",
    "num_experts",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    *LATENT_FIELDS,
)
POSITIVE = ("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv", "swiglu_limit")
NOT_NEGATIVE = (
    "norm_eps",
    "position_offset",
    "type_vocab_size",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "initializer_range",
    "embedding_initializer_range",
)
PROBABILITIES = (
    "residual_dropout",
    "embedding_dropout",
    "attention_dropout",
    "activation_dropout",
    "classifier_dropout",
    "router_jitter_noise",
)
# what the halves of an encoder-decoder need not have in common to share their layers
FREE_IN_SHARED_LAYERS = (
    *PROBABILITIES,
    "vocab_size",
    "tie_word_embeddings",
    "layer_types",
    "sliding_window",
    "relative_attention_num_buckets",
    "classifier_bias",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "hf_llm_version",
)
EXPERT_FIELDS = (
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_expert_gate",
    "router_bias",
    "expert_bias",
)


class ConfigurationError(StrictDataclassError, ValueError):
    """A configuration that cannot be: a ValueError, as everywhere, and what transformers' own configurations raise."""


def strict_configuration(cls: type) -> type:
    """`@strict`, raising [`ConfigurationError`] with the message of the check that failed."""
    cls = strict(cls)
    make = cls.__init__

    @functools.wraps(make)
    def __init__(self, *args, **kwargs):
        try:
            make(self, *args, **kwargs)
        except ConfigurationError:  # of a part of this one
            raise
        except StrictDataclassError as error:
            raise ConfigurationError(str(error.__cause__ or error)) from error

    cls.__init__ = __init__
    return cls


def check_choice(field: str, value: Any, legal) -> None:
    if value not in legal:
        raise ValueError(f"`{field}={value!r}` is not known. Legal values: {', '.join(map(repr, legal))}.")


def check_token_ids(field: str, ids: int | list[int] | None, vocab_size: int) -> None:
    for token in ids if isinstance(ids, list) else [ids]:
        if token is not None and not 0 <= token < vocab_size:
            raise ValueError(f"`{field}={token}` is outside the vocabulary: `vocab_size={vocab_size}`.")


class StackChecks:
    """The checks of one stack (mixed into its configuration; `@strict` calls every `validate_*` method)."""

    def validate_choices(self):
        """Every field that names a variant names one that exists."""
        for entry in self.entries:
            if hasattr(entry, "check"):
                entry.check(self)
        check_choice("parallel_norms", self.parallel_norms, (1, 2))
        check_choice("qk_norm", self.qk_norm, (None, "head", "per_head", "full"))
        check_choice("position_ids_source", self.position_ids_source, ("arange", "attention_mask", "input_ids"))
        check_choice("embedding_projection", self.embedding_projection, (None, "tokens", "embeddings"))
        check_choice("residual_init", self.residual_init, ("depth_scaled", "normal", "zero"))
        check_choice("hidden_act", self.hidden_act, ACT2FN)

    def check_ranges(self):
        """Numbers are in their ranges."""
        for fields, legal, meaning in (
            (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
            (POSITIVE, lambda value: value > 0, "greater than 0"),
            (NOT_NEGATIVE, lambda value: value >= 0, "at least 0"),
            (PROBABILITIES, lambda value: 0 <= value < 1, "in [0, 1)"),
        ):
            for field in fields:
                value = getattr(self, field, None)
                if value is not None and not legal(value):
                    raise ValueError(f"`{field}={value}` must be {meaning}.")

    def validate_sizes(self):
        """Sizes that were derived are in their ranges, too, and divide where they must."""
        self.check_ranges()
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_key_value_heads={self.num_key_value_heads}` must divide "
                f"`num_attention_heads={self.num_attention_heads}`."
            )
        if (self.embedding_size is None) != (self.embedding_projection is None):
            raise ValueError(
                f"`embedding_size={self.embedding_size}` and `embedding_projection={self.embedding_projection!r}` "
                "go together: set both ('tokens' or 'embeddings'), or neither."
            )

    def validate_layer_pattern(self):
        """Windows and patterns belong together; lists have one entry per layer."""
        slides = "sliding_attention" in self.layer_types
        if slides and self.sliding_window is None:
            raise ValueError("`layer_types` has sliding layers but `sliding_window=None`: set the window's size.")
        if self.sliding_window is not None and not slides:
            raise ValueError(
                f"`sliding_window={self.sliding_window}` has no layer to slide in: set `layer_types`, for instance "
                "'S' (all layers) or 'SSSL' (every fourth layer sees everything)."
            )
        for field in ("layer_types", "mlp_layer_types", "rope_layers", "layer_sharing"):
            value = getattr(self, field)
            if value is not None and len(value) != self.num_hidden_layers:
                raise ValueError(
                    f"`{field}` has {len(value)} entries, but `num_hidden_layers={self.num_hidden_layers}`."
                )
        for layer_type in self.layer_types:
            check_choice("layer_types", layer_type, LAYER_TYPES)
        if self.layer_sharing is not None:
            distinct = sorted(set(self.layer_sharing))
            if distinct != list(range(len(distinct))):
                raise ValueError(f"`layer_sharing={self.layer_sharing}` must use every number from 0 to its largest.")
            if len(set(self.mlp_layer_types or ["dense"])) > 1:
                raise ValueError("`layer_sharing` needs the same kind of feed-forward in every layer.")

    def validate_positions(self):
        """Fields of one kind of positions are used with that kind, and say something."""
        if self.rope_layers is not None and not self.rotates:
            raise ValueError(f"`rope_layers` needs `position_embedding='rope'`, not {self.position_embedding!r}.")
        self._check_rope_types()
        for layer_type, width in self.rotary_dim.items():
            if width < 2 or width % 2 or width > self.head_dim:
                raise ValueError(
                    f"RoPE of `{layer_type}` rotates {width} of `head_dim={self.head_dim}` dimensions: the number "
                    "must be even, at least 2 and at most head_dim (see `partial_rotary_factor`)."
                )
        self._check_longrope()
        if self.relative_attention_bias_per_layer and self.position_embedding != "relative_bias":
            raise ValueError(
                "`relative_attention_bias_per_layer=True` needs `position_embedding='relative_bias'`, "
                f"not {self.position_embedding!r}."
            )
        if self.position_embedding == "relative_bias":
            exact = self.relative_attention_num_buckets // (4 if self.is_bidirectional else 2)
            if exact < 1 or self.relative_attention_max_distance <= exact:
                raise ValueError(
                    f"`relative_attention_num_buckets={self.relative_attention_num_buckets}` has {exact} buckets for "
                    "single distances: there must be one at least, and "
                    f"`relative_attention_max_distance={self.relative_attention_max_distance}` must be greater."
                )
        if self.position_ids_source == "input_ids" and self.pad_token_id is None:
            raise ValueError("`position_ids_source='input_ids'` counts tokens that are not `pad_token_id`: set it.")

    def validate_rope(self):
        """As in transformers, but a missing key is an error of value."""
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from error

    def _check_rope_types(self):
        """The scaling exists, and parameters that are nested by layer type leave none out."""
        if not self.rotates:
            return
        nested = self.nested_rope_parameter_keys(self.rope_parameters)
        for layer_type in dict.fromkeys(self.layer_types):
            if nested and layer_type not in nested:
                raise ValueError(
                    f"`rope_parameters` has no entry for the layer type {layer_type!r}: add one, or None for no RoPE."
                )
        for parameters in self.rope_of_layer_types.values():
            check_choice("rope_parameters['rope_type']", parameters.get("rope_type", "default"), ROPE_TYPES)

    def _check_longrope(self):
        """A factor for each rotated pair of dimensions."""
        for layer_type, width in self.rotary_dim.items():
            parameters = self.rope_of_layer_types[layer_type]
            for field in ("short_factor", "long_factor"):
                factors = parameters.get(field)
                if factors is not None and len(factors) != width // 2:
                    raise ValueError(
                        f"`rope_parameters[{field!r}]` has {len(factors)} entries, but must have one for each pair of "
                        f"the {width} dimensions that RoPE rotates: {width // 2}."
                    )

    def validate_experts(self):
        """Experts: the fields that need each other."""
        if self.mlp_layer_types is not None and "sparse" in self.mlp_layer_types and not self.num_experts:
            raise ValueError("`mlp_layer_types` has sparse layers but `num_experts` is not set.")
        for field in EXPERT_FIELDS:
            if getattr(self, field) and self.num_experts is None:
                raise ValueError(f"`{field}={getattr(self, field)}` means nothing without `num_experts`.")
        if self.output_router_logits and not self.is_moe:
            raise ValueError("`output_router_logits=True`: there are no routers without sparse layers.")
        if self.shared_expert_gate and self.shared_expert_intermediate_size is None:
            raise ValueError("`shared_expert_gate=True` means nothing without `shared_expert_intermediate_size`.")
        if self.is_moe and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"`num_experts_per_tok={self.num_experts_per_tok}` must be between 1 and "
                f"`num_experts={self.num_experts}`."
            )
        if self.is_moe:
            check_choice("feed_forward", self.feed_forward, ("gated", "plain"))  # of experts
        if (self.swiglu_limit is not None or self.swiglu_alpha is not None) and self.feed_forward != "gated":
            raise ValueError("`swiglu_limit` and `swiglu_alpha` need `feed_forward='gated'`.")

    def validate_token_ids(self):
        """Special tokens are in the vocabulary."""
        for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
            check_token_ids(field, getattr(self, field), self.vocab_size)
