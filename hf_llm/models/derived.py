"""Values of a stack's configuration that follow from its fields: those filled in when it is made, and properties."""

from .checks import LAYER_TYPES, TABLES
from .feedforward import FEED_FORWARDS
from .positions import POSITIONS


# letters of a pattern, by the field that may be given one
PATTERNS = {
    "layer_types": {"S": "sliding_attention", "L": "full_attention"},
    "mlp_layer_types": {"D": "dense", "E": "sparse"},
}


def tile(field: str, pattern: str, length: int) -> list[str]:
    """`"SSSL"` tiled over `length` layers: `["sliding_attention"] * 3 + ["full_attention"] + ...`."""
    letters = PATTERNS[field]
    if not pattern or set(pattern) - set(letters):
        legal = ", ".join(f"{letter} ({meaning})" for letter, meaning in letters.items())
        example = "".join(letters)
        raise ValueError(f"`{field}={pattern!r}` must be a pattern of the letters {legal}, such as {example!r}.")
    return [letters[pattern[i % len(pattern)]] for i in range(length)]


class DerivedValues:
    """What follows from the fields of one stack (mixed into its configuration)."""

    def derive(self) -> None:
        """Fill in the fields that are `None` and follow from others, and tile patterns of layers."""
        for field in PATTERNS:
            if isinstance(getattr(self, field), str):
                setattr(self, field, tile(field, getattr(self, field), self.num_hidden_layers))
        if self.num_experts:
            self._fill(mlp_layer_types=["sparse"] * self.num_hidden_layers)
        if not self.is_moe:
            self.num_experts_per_tok, self.router_aux_loss_coef = None, 0.0
        else:
            self._fill(num_experts_per_tok=2, router_aux_loss_coef=0.01)
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads={self.num_attention_heads}` must divide `hidden_size={self.hidden_size}`, "
                "or `head_dim` must be set."
            )
        gated = -(-8 * self.hidden_size // (3 * 64)) * 64
        self._fill(
            num_key_value_heads=self.num_attention_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            intermediate_size=gated if FEED_FORWARDS[self.feed_forward].is_gated else 4 * self.hidden_size,
            attention_output_bias=self.attention_bias,
            layer_types=["full_attention"] * self.num_hidden_layers,
        )
        if self.num_experts:
            self._fill(moe_intermediate_size=self.intermediate_size)

    def _fill(self, **values) -> None:
        """Set the fields that are `None`."""
        for field, value in values.items():
            if getattr(self, field) is None:
                setattr(self, field, value)

    def convert_rope_params_to_dict(self, **kwargs):
        """RoPE parameters exist only where positions are rotary, and may be nested by layer type."""
        if self.rotates:
            return super().convert_rope_params_to_dict(**kwargs)
        if self.rope_parameters:
            raise ValueError(
                f"`rope_parameters={self.rope_parameters}` needs `position_embedding='rope'`, "
                f"not {self.position_embedding!r}."
            )
        return kwargs

    def nested_rope_parameter_keys(self, rope_parameters) -> list[str]:
        return [key for key in rope_parameters if key in LAYER_TYPES]

    @property
    def entries(self) -> list:
        """The chosen entry of each table of variants."""
        return [table[getattr(self, table.setting)] for table in TABLES]

    @property
    def is_moe(self) -> bool:
        return bool(self.num_experts) and "sparse" in (self.mlp_layer_types or ())

    @property
    def query_dim(self) -> int:
        """Width of a query's head, whose root divides the scores."""
        return self.head_dim + (self.qk_nope_head_dim or 0)

    @property
    def output_size(self) -> int:
        """Width of the last hidden state."""
        return self.embedding_size if self.embedding_projection == "tokens" else self.hidden_size

    @property
    def rotates(self) -> bool:
        """Whether positions rotate queries and keys."""
        return POSITIONS[self.position_embedding].kind == "rotary"

    @property
    def rope_of_layer_types(self) -> dict[str, dict]:
        """RoPE parameters of each layer type that rotates."""
        if not self.rotates:
            return {}
        nested = self.nested_rope_parameter_keys(self.rope_parameters)
        return {
            layer_type: self.rope_parameters[layer_type] if nested else self.rope_parameters
            for layer_type in dict.fromkeys(self.layer_types)
            if not nested or self.rope_parameters.get(layer_type) is not None
        }

    @property
    def rotary_dim(self) -> dict[str, int]:
        """Rotated dimensions of a head for each layer type that rotates."""
        return {
            layer_type: int(self.head_dim * parameters.get("partial_rotary_factor", 1.0))
            for layer_type, parameters in self.rope_of_layer_types.items()
        }

    @property
    def longrope_limit(self) -> int | None:
        """The length up to which longrope rotates by its short frequencies, or `None` without longrope."""
        parameters = self.rope_parameters or {}
        nested = [parameters[key] or {} for key in self.nested_rope_parameter_keys(parameters)]
        limits = [
            p["original_max_position_embeddings"] for p in nested or [parameters] if p.get("rope_type") == "longrope"
        ]
        return min(limits, default=None)
