"""The one attention of the core: self and cross, causal and bidirectional, MHA / GQA / MQA, on every backend.

Shapes: B batch, H query heads, K key-value heads, Q query length, S key length, D head_dim.
"""

import copy
import re
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .compat import update_paged_cache
from .norms import NORMS, get_qk_norm
from .operators import cast_once
from .positions import POSITIONS, RelativeBias, apply_rotary
from .table import Table


# What each backend can honour beyond plain, masked attention. Anything else it would refuse or silently drop.
BACKEND_FEATURES: dict[str, frozenset[str]] = {
    "eager": frozenset({"softcap", "sinks", "position_bias", "dropout"}),
    "sdpa": frozenset({"position_bias", "dropout"}),
    "flex_attention": frozenset({"softcap", "sinks", "position_bias"}),
    "flash_attention_2": frozenset({"softcap", "dropout"}),
    "flash_attention_3": frozenset({"softcap", "sinks"}),
    "flash_attention_4": frozenset({"softcap", "sinks"}),
    "paged|eager": frozenset({"sinks", "dropout"}),  # it only generates, where there is no dropout
}
# Kernels of the Hub have a repository's name ("kernels-community/flash-attn2"); their version is its last digit.
HUB_KERNEL = re.compile(r"^[^/]+/.*flash\D*(?P<version>[234])?")
FEATURE_FIELDS = {
    "softcap": "attn_logit_softcapping",
    "sinks": "attention_sinks",
    "position_bias": "position_embedding",
    "dropout": "attention_dropout",
}


# transformers' attention function -> what a backend of this package runs in its place. Another function that a user
# enters in `ALL_ATTENTION_FUNCTIONS` under the same name is not replaced.
FASTER_ATTENTION: dict[Callable, Callable] = {}


def required_features(config: PreTrainedConfig, training: bool = False) -> set[str]:
    """The features that `config` asks of an attention backend; `training`: those that only training needs as well."""
    wanted = {
        "softcap": config.attn_logit_softcapping is not None,
        "sinks": config.attention_sinks,
        "position_bias": POSITIONS[config.position_embedding].kind == "bias",
        "dropout": training and config.attention_dropout > 0,
    }
    return {feature for feature, asked in wanted.items() if asked}


def backend_features(backend: str) -> frozenset[str]:
    """The features of a backend; those that are not in the table are trusted to have all."""
    if kernel := HUB_KERNEL.match(backend):
        backend = f"flash_attention_{kernel['version'] or 2}"
    return BACKEND_FEATURES.get(backend, frozenset(FEATURE_FIELDS))


def check_backend(config: PreTrainedConfig, backend: str, training: bool = False) -> None:
    """Raise ValueError, naming the fields, if `backend` cannot honour `config`."""
    required = required_features(config, training)
    missing = required - backend_features(backend)
    if missing:
        fields = ", ".join(f"`{FEATURE_FIELDS[f]}={getattr(config, FEATURE_FIELDS[f])!r}`" for f in sorted(missing))
        able = [name for name, features in BACKEND_FEATURES.items() if required <= features]
        raise ValueError(
            f"`attn_implementation={backend!r}` cannot honour {fields}. Backends that can: {', '.join(able)}."
        )


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference: everything that any configuration asks for, and the weights.

    query (B, H, Q, D), key and value (B, K, S, D), additive mask and bias broadcast to (B, H, Q, S), sinks s_aux (H,)
    -> output (B, Q, H, D), weights (B, H, Q, S). The softmax is taken in float32.
    """
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, H, Q, S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        sinks = s_aux[None, :, None, None].expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat((scores, sinks.to(scores.dtype)), dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32)
    if s_aux is not None:
        weights = weights[..., :-1]
    if attention_mask is not None:  # a query that sees no key gets zeros, as in sdpa and flash attention
        weights = weights.masked_fill(attention_mask <= torch.finfo(attention_mask.dtype).min / 2, 0.0)
    weights = F.dropout(weights.to(query.dtype), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def update_cache(
    key: torch.Tensor, value: torch.Tensor, cache: Cache | None, layer_idx: int, kwargs: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (B, K, S, D) after those that the cache holds; a paged cache is `kwargs["cache"]`."""
    if cache is not None:
        return cache.update(key, value, layer_idx)
    return update_paged_cache(key, value, layer_idx, kwargs) if "cache" in kwargs else (key, value)


class Attention(nn.Module):
    """
    Multi-head attention (https://arxiv.org/abs/1706.03762) with what the configuration adds to it.

    A variant overrides one of its three parts: `make_projections`, `project` (queries, keys and values, and what is
    cached of them) and `output`. One whose cross-attention should be this class sets `self_attention_only`.
    """

    self_attention_only = False
    fits_paged_cache = True  # whether what it caches is `num_key_value_heads` keys and values of `head_dim`

    def __init__(self, config: PreTrainedConfig, layer_idx: int, is_causal: bool, is_cross_attention: bool = False):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.is_cross_attention = is_cross_attention
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.make_projections()
        if config.attention_sinks:  # otherwise absent: paged attention looks whether the attribute exists
            self.sinks = nn.Parameter(torch.empty(config.num_attention_heads))
        self.position_bias = None
        if config.relative_attention_bias_per_layer and not is_cross_attention:
            self.position_bias = RelativeBias(config, bidirectional=not is_causal)

    @staticmethod
    def tp_plan(config: PreTrainedConfig) -> dict[str, str]:
        """Tensor-parallel styles by module, if heads can be split. A subclass does not inherit it: without a plan of
        its own, each rank holds all of the attention."""
        if config.attention_sinks or config.qk_norm in ("full", "per_head"):
            return {}  # a parameter for each head, outside of the projections
        plan = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}
        if config.qk_norm == "head" and NORMS[config.norm_type].has_weight:
            plan |= dict.fromkeys(("q_norm", "k_norm"), "replicated_with_grad_allreduce")
        return plan

    @staticmethod
    def check(config: PreTrainedConfig) -> None:
        """Raise ValueError for a field that means nothing here."""
        for field in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(config, field) is not None:
                raise ValueError(
                    f"`{field}={getattr(config, field)}` means nothing without `attention_type='latent'`."
                )

    @staticmethod
    def cache_width(config: PreTrainedConfig) -> int:
        """Numbers that are cached for each token."""
        return 2 * config.num_key_value_heads * config.head_dim

    def make_projections(self) -> None:
        """The linear layers, and the norms of queries and keys."""
        config = self.config
        query_width, kv_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        source = config.hidden_size
        if self.is_cross_attention:
            source = config.cross_attention_hidden_size or config.hidden_size
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(source, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(source, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_output_bias)
        self.o_proj.writes_residual = True
        self.q_norm = get_qk_norm(config, config.num_attention_heads)
        self.k_norm = get_qk_norm(config, config.num_key_value_heads)

    def project(
        self, hidden_states: torch.Tensor, position_embeddings, past_key_values: Cache | None, layer_idx: int, kwargs
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Self-attention: hidden_states (B, Q, hidden) -> query (B, H, Q, D), key and value (B, K, S, D), rotated.

        Keys and values follow those of the cache: `past_key_values`, or a paged one in `kwargs`.
        """
        query = self._project(self.q_proj, self.q_norm, hidden_states)
        key = self._project(self.k_proj, self.k_norm, hidden_states)
        value = self._project(self.v_proj, None, hidden_states)
        if position_embeddings is not None:
            query, key = apply_rotary(query, key, *position_embeddings, self.config.rope_interleaved)
        return query, *update_cache(key, value, past_key_values, layer_idx, kwargs)

    def output(self, attended: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """attended (B, Q, H * D) -> (B, Q, hidden); hidden_states (B, Q, hidden): what the attention was given."""
        return self.o_proj(attended)

    def _project(self, projection: nn.Linear, norm: nn.Module | None, states: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, heads, T, D), normalised and clipped as configured."""
        states = projection(states)
        if norm is not None and self.config.qk_norm == "full":
            states, norm = norm(states), None
        batch, length, _ = states.shape
        states = states.view(batch, length, -1, self.head_dim)
        if norm is not None:
            states = norm(states)
        if (clip := self.config.clip_qkv) is not None:
            states = states.clamp(-clip, clip)
        return states.transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        layer_idx: int | None = None,
        sliding_window: int | None = None,
        distance: torch.LongTensor | None = None,
        is_causal: bool | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        hidden_states (B, Q, hidden) -> output (B, Q, hidden) and the weights, where the backend gives them.

        attention_mask: what the backend wants (see `visibility.py`); position_bias broadcasts to (B, H, Q, S);
        encoder_hidden_states (B, S, encoder hidden) for cross-attention; position_embeddings: cos and sin;
        layer_idx: place in the cache (differs from `self.layer_idx` where layers are shared).
        """
        layer_idx = self.layer_idx if layer_idx is None else layer_idx
        hidden_states = cast_once(hidden_states)
        if self.is_cross_attention:
            query = self._project(self.q_proj, self.q_norm, hidden_states)
            key, value = self._encoder_key_value(encoder_hidden_states, past_key_values, layer_idx)
            is_causal = False
        else:
            query, key, value = self.project(hidden_states, position_embeddings, past_key_values, layer_idx, kwargs)
            is_causal = self.is_causal if is_causal is None else is_causal

        if self.position_bias is not None:
            position_bias = self.position_bias(distance).to(query.dtype).expand(len(query), -1, -1, -1)
        scaling = self.scaling
        if self.config.scale_attention_by_inverse_layer_idx:
            scaling = scaling / (layer_idx + 1)

        if sliding_window is not None and not is_causal:
            sliding_window += 1  # only flash attention reads it, and sees `sliding_window - 1` to either side

        module = self
        if "cache" in kwargs and layer_idx != self.layer_idx:  # a paged cache is looked up by the module's own index
            module = copy.copy(self)
            module.layer_idx = layer_idx
        if self.config.attention_sinks:  # flash attention 2 has no such argument
            kwargs["s_aux"] = self.sinks
        dropout = self.config.attention_dropout if self.training else 0.0
        if dropout and not torch.compiler.is_compiling():
            check_backend(self.config, self.config._attn_implementation, training=True)
        backend = self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)
        output, weights = FASTER_ATTENTION.get(attend, attend)(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=self.config.attn_logit_softcapping,
            position_bias=position_bias,
            is_causal=is_causal,
            **kwargs,
        )
        return self.output(output.reshape(*hidden_states.shape[:-1], -1), hidden_states), weights

    def _encoder_key_value(self, encoder_hidden_states, past_key_values, layer_idx):
        """Keys and values of the encoder's output, computed once and then read from the cross-attention cache."""
        cached = isinstance(past_key_values, EncoderDecoderCache)
        if cached and past_key_values.is_updated.get(layer_idx):
            layer = past_key_values.cross_attention_cache.layers[layer_idx]
            return layer.keys, layer.values
        encoder_hidden_states = cast_once(encoder_hidden_states)
        key = self._project(self.k_proj, self.k_norm, encoder_hidden_states)
        value = self._project(self.v_proj, None, encoder_hidden_states)
        if cached:
            key, value = past_key_values.cross_attention_cache.update(key, value, layer_idx)
            past_key_values.is_updated[layer_idx] = True
        return key, value


ATTENTIONS = Table("attention_type", softmax=Attention)
