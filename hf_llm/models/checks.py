"""What a configuration must satisfy, checked once, when it is made. Each message names the field, its value and what
is legal.

Rules of single fields are tables: legal values (`STACK_CHOICES`), ranges (`RANGES`), and what a field needs of others
(`NEEDS`). `@strict` calls every method `validate_*`.
"""

import functools
from collections.abc import Collection
from typing import Any, ClassVar

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
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")

STACK_CHOICES = {
    "parallel_norms": (1, 2),
    "qk_norm": (None, "head", "per_head", "full"),
    "position_ids_source": ("arange", "attention_mask", "input_ids"),
    "embedding_projection": (None, "tokens", "embeddings"),
    "residual_init": ("depth_scaled", "normal", "zero"),
    "hidden_act": ACT2FN,
}

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
    "cross_attention_hidden_size",
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
RANGES = (
    (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
    (POSITIVE, lambda value: value > 0, "greater than 0"),
    (NOT_NEGATIVE, lambda value: value >= 0, "at least 0"),
    (PROBABILITIES, lambda value: 0 <= value < 1, "in [0, 1)"),
)

EXPERT_FIELDS = (
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_expert_gate",
    "router_bias",
    "expert_bias",
)
# fields that are set -> whether the configuration has what they need -> what that is
NEEDS = (
    (("rope_layers",), lambda c: c.rotates, "needs `position_embedding='rope'`, not {c.position_embedding!r}"),
    (
        ("relative_attention_bias_per_layer",),
        lambda c: c.position_embedding == "relative_bias",
        "needs `position_embedding='relative_bias'`, not {c.position_embedding!r}",
    ),
    (EXPERT_FIELDS, lambda c: c.num_experts is not None, "means nothing without `num_experts`"),
    (
        ("shared_expert_gate",),
        lambda c: c.shared_expert_intermediate_size is not None,
        "means nothing without `shared_expert_intermediate_size`",
    ),
    (("output_router_logits",), lambda c: c.is_moe, "needs sparse layers: there are no routers without them"),
    (
        ("swiglu_limit", "swiglu_alpha"),
        lambda c: c.feed_forward == "gated",
        "needs `feed_forward='gated'`, not {c.feed_forward!r}",
    ),
)
LISTS_OF_LAYERS = ("layer_types", "mlp_layer_types", "rope_layers", "layer_sharing")


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


class CommonChecks:
    """The checks of single fields, by tables."""

    choices: ClassVar[dict[str, Collection]] = {}  # legal values of fields

    def validate_choices(self):
        """Every field that names a choice names one that exists."""
        for field, legal in self.choices.items():
            check_choice(field, getattr(self, field), legal)

    def validate_ranges(self):
        """Numbers are in their ranges."""
        for fields, legal, meaning in RANGES:
            for field in fields:
                value = getattr(self, field, None)
                if value is not None and not legal(value):
                    raise ValueError(f"`{field}={value}` must be {meaning}.")


class StackChecks:
    """The checks of one stack (mixed into its configuration)."""

    def validate_entries(self):
        """What the chosen variants ask of the configuration."""
        for entry in self.entries:
            if hasattr(entry, "check"):
                entry.check(self)

    def validate_needs(self):
        """Fields are used with what they need, and say something."""
        for fields, has, need in NEEDS:
            for field in fields:
                value = getattr(self, field)
                if value is not None and value is not False and not has(self):
                    raise ValueError(f"`{field}={value!r}` {need.format(c=self)}.")

    def validate_sizes(self):
        """Sizes divide where they must."""
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
        for field in LISTS_OF_LAYERS:
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

    def validate_relative_bias(self):
        """Buckets for single distances exist, and the longest distance lies behind them."""
        if self.position_embedding != "relative_bias":
            return
        exact = self.relative_attention_num_buckets // (4 if self.is_bidirectional else 2)
        if exact < 1 or self.relative_attention_max_distance <= exact:
            raise ValueError(
                f"`relative_attention_num_buckets={self.relative_attention_num_buckets}` has {exact} buckets for "
                "single distances: there must be one at least, and "
                f"`relative_attention_max_distance={self.relative_attention_max_distance}` must be greater."
            )

    def validate_positions(self):
        """Each layer type that rotates has RoPE parameters, a scaling that exists, a number of dimensions that can be
        rotated, and a factor for each pair of them."""
        if not self.rotates:
            return
        nested = self.nested_rope_parameter_keys(self.rope_parameters)
        for layer_type in dict.fromkeys(self.layer_types):
            if nested and layer_type not in nested:
                raise ValueError(
                    f"`rope_parameters` has no entry for the layer type {layer_type!r}: add one, or None for no RoPE."
                )
        for layer_type, parameters in self.rope_of_layer_types.items():
            check_choice("rope_parameters['rope_type']", parameters.get("rope_type", "default"), ROPE_TYPES)
            width = self.rotary_dim[layer_type]
            if width < 2 or width % 2 or width > self.head_dim:
                raise ValueError(
                    f"RoPE of `{layer_type}` rotates {width} of `head_dim={self.head_dim}` dimensions: the number "
                    "must be even, at least 2 and at most head_dim (see `partial_rotary_factor`)."
                )
            for field in ("short_factor", "long_factor"):
                factors = parameters.get(field)
                if factors is not None and len(factors) != width // 2:
                    raise ValueError(
                        f"`rope_parameters[{field!r}]` has {len(factors)} entries, but must have one for each pair of "
                        f"the {width} dimensions that RoPE rotates: {width // 2}."
                    )

    def validate_rope(self):
        """As in transformers, but a missing key is an error of value."""
        try:
            super().validate_rope()
        except KeyError as error:
            raise ValueError(error.args[0]) from error

    def validate_experts(self):
        """Sparse layers have experts, enough of them, and of a kind that exists."""
        if "sparse" in (self.mlp_layer_types or ()) and not self.num_experts:
            raise ValueError("`mlp_layer_types` has sparse layers but `num_experts` is not set.")
        if not self.is_moe:
            return
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"`num_experts_per_tok={self.num_experts_per_tok}` must be between 1 and "
                f"`num_experts={self.num_experts}`."
            )
        check_choice("feed_forward", self.feed_forward, ("gated", "plain"))  # of experts

    def validate_token_ids(self):
        """Special tokens are in the vocabulary, and known where positions count others than them."""
        for field in SPECIAL_TOKENS:
            check_token_ids(field, getattr(self, field), self.vocab_size)
        if self.position_ids_source == "input_ids" and self.pad_token_id is None:
            raise ValueError("`position_ids_source='input_ids'` counts tokens that are not `pad_token_id`: set it.")
