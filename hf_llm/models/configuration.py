"""Configurations of the three stacks.

A configuration *is* the architecture: every choice of the core is a field here, checked in one place (`checks.py`),
and nothing in the modeling code looks at a model's name. Fields come in groups: size, norms, positions, attention,
feed-forward, embeddings and head, residual stream, training. Values that follow from them (`head_dim`, `layer_types`,
...) are filled in when the configuration is made (`derived.py`) and are never changed afterwards.
"""

import dataclasses
from typing import Any, ClassVar

from .compat import sub_config  # first: it refuses the versions of transformers that lack what follows


# isort: split
from transformers.activations import ACT2FN

from .checks import PROBABILITIES, SPECIAL_TOKENS, STACK_CHOICES, StackChecks, check_token_ids, strict_configuration
from .common import CommonConfig
from .derived import DerivedValues
from .plans import ParallelPlans


@strict_configuration
class LLMStackConfig(StackChecks, DerivedValues, ParallelPlans, CommonConfig):
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

    is_stack: ClassVar[bool] = True
    is_bidirectional: ClassVar[bool] = False
    choices: ClassVar = STACK_CHOICES

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

    def __post_init__(self, **kwargs):
        own = {
            name: default for entry in self.entries for name, default in getattr(entry, "config_fields", {}).items()
        }
        self.check_keywords(kwargs, own)
        for name, default in own.items():
            setattr(self, name, kwargs.pop(name, default))
        self.validate_ranges()
        for entry in self.entries:
            if hasattr(entry, "configure"):
                entry.configure(self)
        self.derive()
        super().__post_init__(**kwargs)


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
    choices: ClassVar = STACK_CHOICES | {"alibi_dtype": (None, "bfloat16")}

    num_key_value_heads: int | None = 2
    classifier_bias: bool = False
    use_cache: bool = True
    alibi_dtype: str | None = None
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None

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
    choices: ClassVar = STACK_CHOICES | {
        "classifier_pooling": ("cls", "mean"),
        "head_transform_act": (None, *ACT2FN),
        "classifier_activation": ACT2FN,
    }

    head_transform: bool = False
    head_transform_bias: bool = True
    head_transform_act: str | None = None
    classifier_pooling: str = "mean"
    classifier_transform: bool = False
    classifier_transform_bias: bool = True
    classifier_activation: str = "tanh"
    classifier_norm: bool = False
    token_classifier_transform: bool = False


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
# what the halves need not have in common to share their layers
_FREE_IN_SHARED_LAYERS = {
    *(field.name for field in dataclasses.fields(CommonConfig)),
    *PROBABILITIES,
    "vocab_size",
    "layer_types",
    "sliding_window",
    "relative_attention_num_buckets",
}
_FIELDS_OF_SHARED_LAYERS = [
    field.name for field in dataclasses.fields(LLMStackConfig) if field.name not in _FREE_IN_SHARED_LAYERS
]


def _half(half: str, **fields) -> LLMStackConfig:
    """One half's configuration; what it refuses is said of that half."""
    try:
        return _HALVES[half](**fields)
    except ValueError as error:
        raise ValueError(f"{half}: {error}") from error


@strict_configuration
class LLMEncoderDecoderConfig(CommonConfig):
    r"""
    An encoder and a decoder with cross-attention (T5- and BART-like).

        encoder, decoder: an [`LLMEncoderConfig`] and an [`LLMDecoderConfig`], or dicts of their fields.
        share_embeddings: encoder and decoder (and, if tied, the head) use one token embedding.
        share_layers: the encoder has the decoder's weights, all but the decoder's cross-attention and the relative
            position bias ("shared" in https://arxiv.org/abs/1907.12461).
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
    base_model_fsdp_plan: ClassVar = {}  # the halves have theirs
    sub_configs_defaults: ClassVar = {half: sub_config(cls) for half, cls in _HALVES.items()}
    sub_configs: ClassVar = _HALVES  # the name of it until transformers 5.19
    choices: ClassVar = {
        "decoder_start": ("start_token", "last_token"),
        "classifier_pooling": ("last", "eos", "next"),
        "classifier_activation": ACT2FN,
    }

    encoder: LLMEncoderConfig | dict | None = None
    decoder: LLMDecoderConfig | dict | None = None
    share_embeddings: bool = True
    share_layers: bool = False
    is_encoder_decoder: bool = True
    use_cache: bool = True
    decoder_start: str = "start_token"
    classifier_pooling: str = "last"
    classifier_transform: bool = False
    classifier_activation: str = "tanh"
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs):
        self.check_keywords(kwargs, MIRRORED)
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
        for field in SPECIAL_TOKENS:
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

    def validate_token_ids(self):
        """Special tokens are in the vocabularies that they are looked up in."""
        check_token_ids("decoder_start_token_id", self.decoder_start_token_id, self.decoder.vocab_size)
        for field in SPECIAL_TOKENS:
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
