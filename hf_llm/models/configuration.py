"""Configurations of the three stacks.

A configuration *is* the architecture: every choice of the core is a field here, checked in one place, and nothing in
the modeling code looks at a model's name. Fields come in groups: size, norms, positions, attention, feed-forward,
embeddings and head, residual stream, training. Derived values (`head_dim`, `layer_types`, ...) are filled in when the
configuration is made and are never changed afterwards.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from .compat import CACHE_NAMES, sub_config  # first: it refuses the versions of transformers that lack what follows


# isort: split
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .checks import (
    FREE_IN_SHARED_LAYERS,
    LAYER_TYPES,
    TABLES,
    StackChecks,
    check_choice,
    check_token_ids,
    strict_configuration,
)
from .feedforward import FEED_FORWARDS
from .plans import ParallelPlans
from .positions import POSITIONS
from .table import SOURCES, load_variants, variants_module


VERSION = "0.2.0"
LAYER_TYPE_LETTERS = {"S": "sliding_attention", "L": "full_attention"}
MLP_TYPE_LETTERS = {"D": "dense", "E": "sparse"}

# Auto class -> suffix of the class that serves it: of every stack, and of one
_AUTO_HEADS = {
    "AutoModel": "Model",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}
_OWN_AUTO_HEADS = {
    "encoder": {"AutoModelForMaskedLM": "ForMaskedLM", "AutoModelForMultipleChoice": "ForMultipleChoice"},
    "decoder": {"AutoModelForCausalLM": "ForCausalLM"},
    "encoder_decoder": {"AutoModelForSeq2SeqLM": "ForConditionalGeneration"},
}


def auto_map(stack: str) -> dict[str, str]:
    """The full `auto_map` of a stack: every Auto class and the file and class that serves it (all are saved)."""
    prefix = "LLM" + "".join(part.capitalize() for part in stack.split("_"))
    own = _OWN_AUTO_HEADS[stack]
    heads = _AUTO_HEADS | own | {"AutoModelForPreTraining": next(iter(own.values()))}
    heads = {auto: f"{stack}.{prefix}{suffix}" for auto, suffix in heads.items()}
    return {"AutoConfig": f"configuration.{prefix}Config", **heads}


def _tile(field: str, pattern: str, letters: dict[str, str], length: int) -> list[str]:
    """`"SSSL"` tiled over `length` layers: `["sliding_attention"] * 3 + ["full_attention"] + ...`."""
    if not pattern or set(pattern) - set(letters):
        legal = ", ".join(f"{letter} ({meaning})" for letter, meaning in letters.items())
        example = "".join(letters)
        raise ValueError(f"`{field}={pattern!r}` must be a pattern of the letters {legal}, such as {example!r}.")
    return [letters[pattern[i % len(pattern)]] for i in range(length)]


class _Common:
    """What all configurations share: fields are read as they are, are the same for all layers, and are saved with the
    code that opens them."""

    # Read this instead of `isinstance`: transformers loads each file of a local checkpoint with its own neighbours, so
    # the class that `AutoConfig` returns is not the one that decoder.py imports.
    is_stack: ClassVar[bool] = False  # one stack, whose fields are the architecture

    # PreTrainedConfig checks `attribute_map` and per-layer overrides on every read. We have neither, and decoding one
    # token reads about 100 fields.
    __getattribute__ = object.__getattribute__

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.attribute_map:
            cls.__getattribute__ = PreTrainedConfig.__getattribute__

    @PreTrainedConfig.per_layer_config.setter
    def per_layer_config(self, per_layer_config: dict | None) -> None:
        """Refuses transformers' fields that differ between layers: fields of their own say what may."""
        if per_layer_config:
            raise ValueError(
                f"`per_layer_config={per_layer_config}`: layers differ by `layer_types`, `mlp_layer_types`, "
                "`rope_layers` and `layer_sharing` alone."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, which opens a checkpoint of another architecture with no more than a warning."""
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"`model_type={found!r}`: this checkpoint is of another architecture, {cls.__name__} opens "
                f"{cls.model_type!r}. Use an Auto class, or import a native checkpoint with `hf-llm import`."
            )
        if variants := config_dict.get("variants"):
            load_variants()
            if missing := ", ".join(name for name in variants if name not in SOURCES):
                raise ValueError(
                    f"This checkpoint has variants of its user's own, which are not imported: {missing}, beside its "
                    "config.json. Pass the file to `hf_llm.import_variants` first (on the command line: `--imports`; "
                    "in a recipe: `imports`)."
                )
        return super().from_dict(config_dict, **kwargs)

    @property
    def stacks(self) -> list["LLMStackConfig"]:
        """The configurations of all stacks."""
        return [self] if self.is_stack else [self.encoder, self.decoder]

    @property
    def own_choices(self) -> dict[str, str]:
        """The user's own variants that are chosen, such as `attention_type='my_gated'`, and the files they are in."""
        chosen = [(table, getattr(stack, table.setting)) for stack in self.stacks for table in TABLES]
        return {f"{table.setting}={name!r}": table.files[name] for table, name in chosen if name in table.files}

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; also writes the full `auto_map`, the version of this package, and files of variants."""
        self.auto_map = auto_map(self.model_type.removeprefix("hf_llm_"))
        self.hf_llm_version = VERSION
        self.__dict__.pop("variants", None)
        if files := sorted(set(self.own_choices.values())):
            self.variants = files
        super().save_pretrained(save_directory, **kwargs)
        if files and self._auto_class is not None:
            for name in files:
                Path(save_directory, name).write_text(SOURCES[name], encoding="utf-8")
            Path(save_directory, "variants.py").write_text(variants_module(files), encoding="utf-8")


@strict_configuration
class LLMStackConfig(StackChecks, ParallelPlans, _Common, PreTrainedConfig):
    r"""
    One stack of transformer layers. Not used by itself: see [`LLMDecoderConfig`] and [`LLMEncoderConfig`].

    Size:
        vocab_size, hidden_size, num_hidden_layers, max_position_embeddings: as everywhere in transformers.
        num_attention_heads, num_key_value_heads: equal for MHA, a divisor for GQA
            (https://arxiv.org/abs/2305.13245), 1 for MQA; `num_key_value_heads=None` means `num_attention_heads`.
        head_dim: width of a head; `None` means `hidden_size / num_attention_heads`.
        intermediate_size: width of the feed-forward; `None` means `4 * hidden_size` for a plain one, and 2/3 of
            that, rounded up to a multiple of 64, for a gated one (https://arxiv.org/abs/2002.05202).

    Norms:
        norm_type: `layernorm`, `rmsnorm` (https://arxiv.org/abs/1910.07467), `rmsnorm_unit_offset` (the weight is
            stored as w and applied as 1 + w, as in Gemma), or one without weights (OLMo).
        norm_eps, norm_bias: epsilon inside the root; whether LayerNorm has a bias.
        norm_placement: see `models/layer.py` for the wiring. `pre` (GPT-2, Llama), `post` (the original transformer,
            BERT), `sandwich` (before and after each branch, Gemma 2), `branch` (on the branch's output only, OLMo 2),
            `parallel` (attention and feed-forward read the same input, GPT-J).
        parallel_norms: 1 if both parallel branches share one norm (GPT-J, Phi), 2 if each has its own (GPT-NeoX).
        embedding_norm, final_norm: a norm after the embeddings; a norm after the last layer.
        first_layer_norm: `False` leaves out the first layer's norm before attention (ModernBERT, whose embeddings
            are normalised already).
        qk_norm: normalise queries and keys (https://arxiv.org/abs/2010.04245): `head` over head_dim with one weight
            (Qwen3, Gemma 3), `per_head` over head_dim with a weight for each head (Cohere, StableLM), `full` over
            all heads together (OLMo 2), or `None`.
        qk_norm_bias: whether these have a bias; follows `norm_bias` if `None`.

    Positions:
        position_embedding: `rope` (https://arxiv.org/abs/2104.09864), `learned`, `sinusoidal`
            (https://arxiv.org/abs/1706.03762), `alibi` (https://arxiv.org/abs/2108.12409), `relative_bias` (T5,
            https://arxiv.org/abs/1910.10683), or `none` (https://arxiv.org/abs/2305.19466).
        rope_parameters: as in transformers: `{"rope_type": ..., "rope_theta": ..., "partial_rotary_factor": ...}`
            with every scaling type of transformers, or one such dict (or `None`) for each layer type.
        rope_interleaved: rotate neighbouring dimensions (GPT-J, Cohere) instead of halves (GPT-NeoX, Llama).
        rope_layers: one bool per layer, `False` for a layer without positions (NoPE layers of SmolLM3).
        position_offset: rows of the learned or sinusoidal table that come before position 0 (OPT, BART, RoBERTa: 2).
        position_ids_source: where positions come from when none are passed: `arange`, `attention_mask` (counts real
            tokens: OPT) or `input_ids` (counts tokens other than `pad_token_id`: RoBERTa).
        relative_attention_num_buckets, relative_attention_max_distance: T5's buckets.
        relative_attention_bias_per_layer: each layer has its own bias (UMT5) instead of all sharing one (T5).
        alibi_scale: factor on the ALiBi bias (Falcon multiplies it by head_dim ** -0.5), 1 if `None`.

    Attention:
        attention_type: `softmax` (https://arxiv.org/abs/1706.03762) or `latent` (DeepSeek-V2, caching one narrow
            vector per token: https://arxiv.org/abs/2405.04434).
        attention_bias, attention_output_bias: biases of q, k, v; bias of o (follows `attention_bias` if `None`).
        attention_scale: factor on the scores; head_dim ** -0.5 if `None` (T5, GPT-Neo: 1).
        scale_attention_by_inverse_layer_idx: also divide by layer index + 1 (GPT-2's option of that name).
        attn_logit_softcapping: cap * tanh(scores / cap) (Gemma 2).
        attention_sinks: a learned logit per head in the softmax that takes no value (gpt-oss).
        clip_qkv: clamp q, k, v to [-clip, clip], after their norms (OLMo, MPT).
        sliding_window: in causal stacks a token sees itself and the `sliding_window - 1` before it; in bidirectional
            ones everything at most `sliding_window` away (transformers' own convention).
        layer_types: one of `full_attention`, `sliding_attention` per layer, or a pattern that is tiled, such as
            `"SSSL"` (S sliding, L long).
        q_lora_rank, kv_lora_rank: latent attention's width of the query's latent vector (`None` for none) and of the
            cached one, of keys and values; qk_nope_head_dim, qk_rope_head_dim: dimensions of a query's head that are
            not rotated, and that are (`head_dim`); v_head_dim: of a value's head, `hidden_size / num_attention_heads`
            if `None`.

    Feed-forward:
        feed_forward: `gated` (https://arxiv.org/abs/2002.05202) or `plain`; hidden_act: any activation of
            transformers; mlp_bias: biases.
        num_experts: number of experts of the sparse layers; `None` for no mixture of experts.
        mlp_layer_types: `dense` or `sparse` per layer, or a tiled pattern such as `"DE"` (D dense, E experts);
            all sparse if `None` and there are experts.
        num_experts_per_tok, norm_topk_prob, moe_intermediate_size: top-k (2 if `None`), whether the probabilities of
            the chosen are scaled to sum to one, width of an expert (`intermediate_size` if `None`).
        shared_expert_intermediate_size, shared_expert_gate: an expert that sees every token (`None` for none), and
            whether a sigmoid gate weighs it (Qwen2-MoE).
        router_bias, expert_bias: biases in router and experts (gpt-oss).
        swiglu_limit, swiglu_alpha: clamp and slope of gpt-oss' gate, (up + 1) * gate * sigmoid(alpha * gate).
        router_aux_loss_coef, router_z_loss_coef: weights of the load-balancing loss
            (https://arxiv.org/abs/2101.03961) and the router z-loss (https://arxiv.org/abs/2202.08906), added to the
            training loss: over all tokens at once, or, with `num_items_in_batch`, row by row (see losses.py). Of the
            first, 0.01 if `None`, and 0 without sparse layers: by that, TRL knows that there is no such loss.
        output_router_logits: whether outputs have the routers' logits and the load-balancing loss.
        router_jitter_noise: multiplicative uniform noise on the router's input in training (Mixtral).

    Embeddings and head:
        tie_word_embeddings; embedding_multiplier: factor on the token embeddings (Gemma: sqrt(hidden_size)).
        embedding_size: width of the token embeddings, `hidden_size` if `None`.
        embedding_projection: where factorised embeddings are widened: `tokens` (the token vectors, before positions
            are added; the last hidden state is projected back before the head: OPT) or `embeddings` (after positions,
            token types and the embedding norm, which are all `embedding_size` wide: ALBERT, ELECTRA);
            embedding_projection_bias: whether that projection has a bias.
        type_vocab_size: number of token types, 0 for none.
        lm_head_bias, logit_scale, final_logit_softcapping: bias of the head, factor and tanh cap on the logits.

    Residual stream:
        residual_multiplier: factor on every branch (Granite, MiniCPM, depth-scaled muP).
        residual_from_norm: the residual continues from the normalised input (Bloom's
            `apply_residual_connection_post_layernorm`).
        residual_dropout, embedding_dropout, attention_dropout, activation_dropout: probabilities.
        layer_sharing: for each layer, which of the distinct layers it is, such as `[0, 0, 0, 1, 1, 1]` (ALBERT);
            `None` for no sharing.

    Initialisation (see `LLMPreTrainedModel._init_weights`):
        initializer_range: standard deviation of matrices; embedding_initializer_range: of embeddings (same if `None`).
        residual_init: of the projections that write into the residual stream: `depth_scaled` (divided by
            sqrt(2 * num_hidden_layers), GPT-2), `normal`, or `zero`.

    Task heads:
        classifier_dropout, classifier_bias: before the last linear layer of a task head; whether that has a bias.
    """

    keys_to_ignore_at_inference: ClassVar = CACHE_NAMES
    is_stack: ClassVar[bool] = True
    is_bidirectional: ClassVar[bool] = False

    # Size
    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int | None = None
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048

    # Norms
    norm_type: str = "rmsnorm"
    norm_eps: float | int = 1e-6
    norm_bias: bool = False
    norm_placement: str = "pre"
    parallel_norms: int = 1
    embedding_norm: bool = False
    final_norm: bool = True
    first_layer_norm: bool = True
    qk_norm: str | None = "head"
    qk_norm_bias: bool | None = None

    # Positions
    position_embedding: str = "rope"
    rope_parameters: dict | None = None
    rope_interleaved: bool = False
    rope_layers: list[bool] | None = None
    position_offset: int = 0
    position_ids_source: str = "arange"
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    relative_attention_bias_per_layer: bool = False
    alibi_scale: float | int | None = None

    # Attention
    attention_type: str = "softmax"
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    attention_scale: float | int | None = None
    scale_attention_by_inverse_layer_idx: bool = False
    attn_logit_softcapping: float | int | None = None
    attention_sinks: bool = False
    clip_qkv: float | int | None = None
    sliding_window: int | None = None
    layer_types: list[str] | str | None = None
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None

    # Feed-forward
    feed_forward: str = "gated"
    hidden_act: str = "silu"
    mlp_bias: bool = False
    num_experts: int | None = None
    mlp_layer_types: list[str] | str | None = None
    num_experts_per_tok: int | None = None
    norm_topk_prob: bool = True
    moe_intermediate_size: int | None = None
    shared_expert_intermediate_size: int | None = None
    shared_expert_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    swiglu_limit: float | int | None = None
    swiglu_alpha: float | int | None = None
    router_aux_loss_coef: float | int | None = None
    router_z_loss_coef: float | int = 0.0
    router_jitter_noise: float | int = 0.0
    output_router_logits: bool = False

    # Embeddings and head
    tie_word_embeddings: bool = True
    embedding_multiplier: float | int | None = None
    embedding_size: int | None = None
    embedding_projection: str | None = None
    embedding_projection_bias: bool = False
    type_vocab_size: int = 0
    lm_head_bias: bool = False
    logit_scale: float | int | None = None
    final_logit_softcapping: float | int | None = None

    # Residual stream
    residual_multiplier: float | int | None = None
    residual_from_norm: bool = False
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    layer_sharing: list[int] | None = None

    # Initialisation
    initializer_range: float | int = 0.02
    embedding_initializer_range: float | int | None = None
    residual_init: str = "depth_scaled"

    # Task heads
    classifier_dropout: float | int = 0.0
    classifier_bias: bool = True

    # Tokens
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    hf_llm_version: str | None = None

    def __post_init__(self, **kwargs):
        for entry in self.entries:
            for name, default in getattr(entry, "config_fields", {}).items():
                setattr(self, name, kwargs.pop(name, default))
            if hasattr(entry, "configure"):
                entry.configure(self)
        self.check_ranges()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"`num_attention_heads={self.num_attention_heads}` must divide `hidden_size={self.hidden_size}`, "
                    "or `head_dim` must be set."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            gated = -(-8 * self.hidden_size // (3 * 64)) * 64
            is_gated = FEED_FORWARDS[self.feed_forward].is_gated
            self.intermediate_size = gated if is_gated else 4 * self.hidden_size
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        elif isinstance(self.layer_types, str):
            self.layer_types = _tile("layer_types", self.layer_types, LAYER_TYPE_LETTERS, self.num_hidden_layers)
        if isinstance(self.mlp_layer_types, str):
            self.mlp_layer_types = _tile(
                "mlp_layer_types", self.mlp_layer_types, MLP_TYPE_LETTERS, self.num_hidden_layers
            )
        elif self.mlp_layer_types is None and self.num_experts:
            self.mlp_layer_types = ["sparse"] * self.num_hidden_layers
        if self.num_experts and self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if not self.is_moe:
            self.num_experts_per_tok, self.router_aux_loss_coef = None, 0.0
        elif self.router_aux_loss_coef is None:
            self.router_aux_loss_coef = 0.01
        if self.is_moe and self.num_experts_per_tok is None:
            self.num_experts_per_tok = 2
        super().__post_init__(**kwargs)

    def convert_rope_params_to_dict(self, **kwargs):
        """RoPE parameters exist only where positions are rotary, and may be nested by layer type."""
        if not self.rotates:
            if self.rope_parameters:
                raise ValueError(
                    f"`rope_parameters={self.rope_parameters}` needs `position_embedding='rope'`, "
                    f"not {self.position_embedding!r}."
                )
            return kwargs
        return super().convert_rope_params_to_dict(**kwargs)

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


@strict_configuration
class LLMDecoderConfig(LLMStackConfig):
    r"""
    A causal decoder (GPT- and Llama-like). The default is RMSNorm, RoPE, SwiGLU, grouped-query attention, QK norm and
    tied embeddings. See [`LLMStackConfig`] for the fields; and, only here:

        alibi_dtype: the ALiBi bias is slope * position of the key, and both slope and product are rounded to this
            dtype (Falcon: `bfloat16`); if `None`, it is slope * distance in float32.
        add_cross_attention: each layer also attends to an encoder's output.
        cross_attention_hidden_size: width of that output, `hidden_size` if `None`.

    Example:

        >>> from hf_llm import LLMDecoderConfig, LLMDecoderForCausalLM
        >>> config = LLMDecoderConfig(hidden_size=256, num_hidden_layers=4, norm_placement="sandwich")
        >>> model = LLMDecoderForCausalLM(config)
    """

    model_type: ClassVar[str] = "hf_llm_decoder"
    is_decoder: ClassVar[bool] = True  # for transformers' VisionEncoderDecoderModel, which asks

    num_key_value_heads: int | None = 2
    classifier_bias: bool = False
    use_cache: bool = True
    alibi_dtype: str | None = None
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None

    def validate_alibi(self):
        check_choice("alibi_dtype", self.alibi_dtype, (None, "bfloat16"))

    def validate_window(self):
        if self.sliding_window == 1:  # and transformers' caches would keep everything
            raise ValueError("`sliding_window=1` lets a token see nothing but itself: it must be at least 2, or None.")


@strict_configuration
class LLMEncoderConfig(LLMStackConfig):
    r"""
    A bidirectional encoder (BERT-like). The default is the bidirectional version of the default decoder. See
    [`LLMStackConfig`] for the fields; and, only here:

        head_transform: a dense layer, activation and norm before the language-modeling head (BERT).
        head_transform_bias: whether that dense layer has a bias.
        head_transform_act: its activation, `hidden_act` if `None`.
        classifier_pooling: `cls` (first token) or `mean` (over real tokens).
        classifier_transform: a dense layer and `classifier_activation` between pooling and classifier (BERT's pooler,
            RoBERTa's head); classifier_transform_bias: whether it has a bias; classifier_norm: a norm after it
            (ModernBERT).
        token_classifier_transform: the same transform also stands before the token-level heads (ModernBERT).
    """

    model_type: ClassVar[str] = "hf_llm_encoder"
    is_bidirectional: ClassVar[bool] = True

    head_transform: bool = False
    head_transform_bias: bool = True
    head_transform_act: str | None = None
    classifier_pooling: str = "mean"
    classifier_transform: bool = False
    classifier_transform_bias: bool = True
    classifier_activation: str = "tanh"
    classifier_norm: bool = False
    token_classifier_transform: bool = False

    def validate_heads(self):
        check_choice("classifier_pooling", self.classifier_pooling, ("cls", "mean"))
        check_choice("head_transform_act", self.head_transform_act, (None, *ACT2FN))
        check_choice("classifier_activation", self.classifier_activation, ACT2FN)


MIRRORED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "initializer_range",
)


def _mirror(field: str) -> property:
    def get(self):
        return getattr(self.decoder, field)

    def set_(self, value):
        for stack in (self.decoder, self.encoder) if field == "vocab_size" else (self.decoder,):
            setattr(stack, field, value)

    return property(get, set_, doc=f"The decoder's `{field}`.")


_HALVES = {"encoder": LLMEncoderConfig, "decoder": LLMDecoderConfig}
_BASE_FIELDS = {field.name for field in dataclasses.fields(PreTrainedConfig)}
_FIELDS_OF_SHARED_LAYERS = [
    field.name
    for field in dataclasses.fields(LLMStackConfig)
    if field.name not in _BASE_FIELDS and field.name not in FREE_IN_SHARED_LAYERS
]


def _half(half: str, **fields) -> LLMStackConfig:
    """One half's configuration; what it refuses is said of that half."""
    try:
        return _HALVES[half](**fields)
    except ValueError as error:
        raise ValueError(f"{half}: {error}") from error


@strict_configuration
class LLMEncoderDecoderConfig(_Common, PreTrainedConfig):
    r"""
    An encoder and a decoder with cross-attention (T5- and BART-like).

        encoder, decoder: an [`LLMEncoderConfig`] and an [`LLMDecoderConfig`], or dicts of their fields.
        share_embeddings: encoder and decoder (and, if tied, the head) use one token embedding.
        share_layers: the encoder has the decoder's weights, all but the decoder's cross-attention and the relative
            position bias ("shared" in https://arxiv.org/abs/1907.12461).
        tie_word_embeddings: the head's weight is the decoder's token embedding.
        decoder_start: what the decoder's inputs begin with where they are made from labels or, for task heads, from
            the source: `start_token` (`decoder_start_token_id`) or `last_token` (the last real token, which is a
            language code in mBART, moves to the front).
        classifier_pooling: which of the decoder's states the sequence head reads, the decoder being given the source
            shifted right: `last` (where the last real token of the source stands), `eos` (where the last
            `eos_token_id` stands: BART, T5), or `next` (one further, which has seen the whole source: T5Gemma).
        classifier_transform: a dense layer and `classifier_activation` before that head (BART, T5).

    The decoder's sizes can be read here as well (`hidden_size`, `num_hidden_layers`, ...), where PEFT and DeepSpeed
    look for them.

    Example:

        >>> from hf_llm import LLMEncoderDecoderConfig
        >>> config = LLMEncoderDecoderConfig(encoder={"hidden_size": 256}, decoder={"hidden_size": 256})
    """

    model_type: ClassVar[str] = "hf_llm_encoder_decoder"
    keys_to_ignore_at_inference: ClassVar = CACHE_NAMES
    base_model_fsdp_plan: ClassVar = {}  # the halves have theirs
    sub_configs_defaults: ClassVar = {half: sub_config(cls) for half, cls in _HALVES.items()}
    sub_configs: ClassVar = _HALVES  # the name of it until transformers 5.19

    encoder: LLMEncoderConfig | dict | None = None
    decoder: LLMDecoderConfig | dict | None = None
    share_embeddings: bool = True
    share_layers: bool = False
    tie_word_embeddings: bool = True
    is_encoder_decoder: bool = True
    use_cache: bool = True
    decoder_start: str = "start_token"
    classifier_pooling: str = "last"
    classifier_transform: bool = False
    classifier_activation: str = "tanh"
    classifier_dropout: float | int = 0.0
    classifier_bias: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    hf_llm_version: str | None = None

    def __post_init__(self, **kwargs):
        mirrored = {field: kwargs.pop(field) for field in MIRRORED if field in kwargs}
        encoder, decoder = self.encoder or {}, self.decoder or {}
        if isinstance(encoder, dict):
            self.encoder = _half("encoder", **{"tie_word_embeddings": self.tie_word_embeddings, **encoder})
        if isinstance(decoder, dict):
            decoder = {"tie_word_embeddings": self.tie_word_embeddings, **decoder, "add_cross_attention": True}
            self.decoder = _half("decoder", **decoder)
        super().__post_init__(**kwargs)
        if isinstance(decoder, dict) and self.encoder.output_size != self.decoder.hidden_size:
            if self.decoder.cross_attention_hidden_size is None:
                self.decoder.cross_attention_hidden_size = self.encoder.output_size
        for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
            for stack in (self.encoder, self.decoder):
                if getattr(stack, field) is None:
                    setattr(stack, field, getattr(self, field))
        for field, value in mirrored.items():
            if value != getattr(self, field):
                raise ValueError(
                    f"`{field}={value}` contradicts the decoder's `{field}={getattr(self, field)}`: set it in "
                    "`decoder`."
                )

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.update({field: getattr(self, field) for field in MIRRORED})
        return output

    def validate_heads(self):
        check_choice("decoder_start", self.decoder_start, ("start_token", "last_token"))
        check_choice("classifier_pooling", self.classifier_pooling, ("last", "eos", "next"))
        check_choice("classifier_activation", self.classifier_activation, ACT2FN)

    def validate_token_ids(self):
        """Special tokens are in the vocabularies that they are looked up in."""
        check_token_ids("decoder_start_token_id", self.decoder_start_token_id, self.decoder.vocab_size)
        for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
            check_token_ids(field, getattr(self, field), max(self.encoder.vocab_size, self.decoder.vocab_size))

    def validate_halves(self):
        """The two halves fit each other."""
        if not self.decoder.add_cross_attention:
            raise ValueError("`decoder.add_cross_attention=False`: the decoder of an encoder-decoder needs it.")
        if self.share_embeddings:
            for field in ("vocab_size", "embedding_size", "hidden_size"):
                encoder, decoder = getattr(self.encoder, field), getattr(self.decoder, field)
                if encoder != decoder and not (field == "hidden_size" and self.encoder.embedding_size is not None):
                    raise ValueError(
                        f"`share_embeddings=True` needs equal `{field}`: encoder {encoder}, decoder {decoder}."
                    )
        width = self.decoder.cross_attention_hidden_size or self.decoder.hidden_size
        if width != self.encoder.output_size:
            raise ValueError(
                f"`decoder.cross_attention_hidden_size={self.decoder.cross_attention_hidden_size}` must be the width "
                f"of the encoder's output, {self.encoder.output_size}."
            )
        if self.share_layers:
            for field in _FIELDS_OF_SHARED_LAYERS:
                encoder, decoder = getattr(self.encoder, field, None), getattr(self.decoder, field, None)
                if encoder != decoder:
                    raise ValueError(
                        f"`share_layers=True` needs equal `{field}`: encoder {encoder}, decoder {decoder}."
                    )


for _field in MIRRORED:
    setattr(LLMEncoderDecoderConfig, _field, _mirror(_field))
