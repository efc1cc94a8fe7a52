"""What a configuration must satisfy, checked once, when it is made. Each message names the field, its value and what
is legal."""

from typing import Any

from transformers.activations import ACT2FN


NORM_TYPES = ("layernorm", "rmsnorm", "rmsnorm_unit_offset", "layernorm_non_affine", "rmsnorm_non_affine")
NORM_PLACEMENTS = ("pre", "post", "sandwich", "branch", "parallel")
POSITION_EMBEDDINGS = ("rope", "learned", "sinusoidal", "alibi", "relative_bias", "none")
POSITION_BIASES = ("alibi", "relative_bias")
LAYER_TYPES = ("full_attention", "sliding_attention")


def check_choice(field: str, value: Any, legal) -> None:
    if value not in legal:
        raise ValueError(f"`{field}={value!r}` is not known. Legal values: {', '.join(map(repr, legal))}.")


class StackChecks:
    """The checks of one stack (mixed into its configuration; `@strict` calls every `validate_*` method)."""

    def validate_choices(self):
        """Every field that names a variant names one that exists."""
        check_choice("norm_type", self.norm_type, NORM_TYPES)
        check_choice("norm_placement", self.norm_placement, NORM_PLACEMENTS)
        check_choice("parallel_norms", self.parallel_norms, (1, 2))
        check_choice("qk_norm", self.qk_norm, (None, "head", "per_head", "full"))
        check_choice("position_embedding", self.position_embedding, POSITION_EMBEDDINGS)
        check_choice("position_ids_source", self.position_ids_source, ("arange", "attention_mask", "input_ids"))
        check_choice("embedding_projection", self.embedding_projection, (None, "tokens", "embeddings"))
        check_choice("feed_forward", self.feed_forward, ("gated", "plain"))
        check_choice("residual_init", self.residual_init, ("depth_scaled", "normal", "zero"))
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act={self.hidden_act!r}` is not known. Legal values: {', '.join(ACT2FN)}.")

    def validate_sizes(self):
        """Sizes are positive and divide where they must."""
        for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                      "head_dim", "intermediate_size", "max_position_embeddings"):  # fmt: skip
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}={getattr(self, field)}` must be at least 1.")
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
        for field in ("residual_dropout", "embedding_dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"`{field}={getattr(self, field)}` must be a probability in [0, 1).")

    def validate_layer_pattern(self):
        """Windows and patterns belong together; lists have one entry per layer."""
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"`sliding_window={self.sliding_window}` must be at least 1, or None.")
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
        """Rotary widths are even; lists and offsets are used only where they mean something."""
        if self.rope_layers is not None and self.position_embedding != "rope":
            raise ValueError(f"`rope_layers` needs `position_embedding='rope'`, not {self.position_embedding!r}.")
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
        if self.position_offset < 0:
            raise ValueError(f"`position_offset={self.position_offset}` must not be negative.")
        if self.position_ids_source == "input_ids" and self.pad_token_id is None:
            raise ValueError("`position_ids_source='input_ids'` counts tokens that are not `pad_token_id`: set it.")

    def _check_longrope(self):
        """A factor for each rotated pair of dimensions."""
        nested = self.rotary_dim and self.nested_rope_parameter_keys(self.rope_parameters)
        for layer_type, width in self.rotary_dim.items():
            parameters = self.rope_parameters[layer_type] if nested else self.rope_parameters
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
        if self.num_experts is not None and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"`num_experts_per_tok={self.num_experts_per_tok}` must be between 1 and "
                f"`num_experts={self.num_experts}`."
            )
        if (self.swiglu_limit is not None or self.swiglu_alpha is not None) and self.feed_forward != "gated":
            raise ValueError("`swiglu_limit` and `swiglu_alpha` need `feed_forward='gated'`.")

    def validate_token_ids(self):
        """Special tokens are in the vocabulary."""
        for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
            ids = getattr(self, field)
            for token in ids if isinstance(ids, list) else [ids]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(f"`{field}={token}` is outside the vocabulary: `vocab_size={self.vocab_size}`.")
