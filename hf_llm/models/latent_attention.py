"""Multi-head latent attention (DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1).

Keys and values of all heads are made from one narrow latent vector per token, and the cache holds that alone:

    latent, rotary key = kv_a(x)                    (B, S, kv_lora_rank), (B, S, qk_rope_head_dim): cached
    key, value = kv_b(norm(latent))                 (B, H, S, qk_nope_head_dim), (B, H, S, v_head_dim)
    query = q_b(norm(q_a(x)))                       (B, H, Q, qk_nope_head_dim + qk_rope_head_dim)

Only the last qk_rope_head_dim dimensions of a query are rotated; their key is one for all heads. Names of fields and
modules, and the layout of the cache, are those of transformers' DeepSeek-V2 and MiniCPM3.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from .attention import ATTENTIONS, Attention, update_cache
from .norms import NORMS
from .positions import apply_rotary


EPS = 1e-6  # of the latents' norms, whatever `norm_eps` is: DeepSeek's reference code


class LatentAttention(Attention):
    """Self-attention whose keys and values are expanded from a cached latent vector. Cross-attention is [`Attention`].

    `head_dim` is the rotated part of a head, `qk_rope_head_dim`; every head has its own keys.
    """

    self_attention_only = True
    fits_paged_cache = False

    @staticmethod
    def configure(config: PreTrainedConfig) -> None:
        """Derived sizes: the rotated part of a head, a key-value head for each head, a value's width."""
        config.head_dim, config.num_key_value_heads = config.qk_rope_head_dim, config.num_attention_heads
        if config.v_head_dim is None:
            config.v_head_dim = config.hidden_size // config.num_attention_heads

    @staticmethod
    def check(config: PreTrainedConfig) -> None:
        """Raise ValueError for a missing size, or for an option of the other attention."""
        for field in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"):
            if getattr(config, field) is None:
                raise ValueError(f"`{field}=None`: `attention_type='latent'` needs it.")
        for field in ("qk_norm", "clip_qkv"):
            if getattr(config, field) is not None:
                value = getattr(config, field)
                raise ValueError(
                    f"`{field}={value!r}`: `attention_type='latent'` has norms of its own: set it to None."
                )

    @staticmethod
    def cache_width(config: PreTrainedConfig) -> int:
        return config.kv_lora_rank + config.qk_rope_head_dim

    @staticmethod
    def tp_plan(config: PreTrainedConfig) -> dict[str, str]:
        """Heads are split; the latent projections, which all heads read, are not."""
        if config.attention_sinks:
            return {}
        plan = {"q_proj": "colwise"} if config.q_lora_rank is None else {"q_b_proj": "colwise"}
        return plan | {"kv_a_proj_with_mqa": "mla_kv_a_proj", "kv_b_proj": "colwise", "o_proj": "rowwise"}

    def make_projections(self) -> None:
        config, heads, bias = self.config, self.config.num_attention_heads, self.config.attention_bias
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_dim, self.rank = config.v_head_dim, config.kv_lora_rank
        self.query_dim = config.query_dim
        if config.attention_scale is None:
            self.scaling = self.query_dim**-0.5
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, heads * self.query_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_norm = NORMS[config.norm_type](config.q_lora_rank, EPS, config.norm_bias)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * self.query_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.rank + self.rope_dim, bias=bias)
        self.kv_a_norm = NORMS[config.norm_type](self.rank, EPS, config.norm_bias)
        self.kv_b_proj = nn.Linear(self.rank, heads * (self.nope_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(heads * self.value_dim, config.hidden_size, bias=config.attention_output_bias)
        self.o_proj.writes_residual = True

    def project(
        self, hidden_states: torch.Tensor, position_embeddings, past_key_values: Cache | None, layer_idx: int, kwargs
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, length, _ = hidden_states.shape
        if self.config.q_lora_rank is None:
            query = self.q_proj(hidden_states)
        else:
            query = self.q_b_proj(self.q_a_norm(self.q_a_proj(hidden_states)))
        query = query.view(batch, length, -1, self.query_dim).transpose(1, 2)  # (B, H, Q, nope + rope)
        latent, rotary_key = self.kv_a_proj_with_mqa(hidden_states).split((self.rank, self.rope_dim), dim=-1)
        latent, rotary_key = self.kv_a_norm(latent)[:, None], rotary_key[:, None]  # (B, 1, Q, ...)
        if position_embeddings is not None:
            plain, rotary = query.split((self.nope_dim, self.rope_dim), dim=-1)
            rotary, rotary_key = apply_rotary(rotary, rotary_key, *position_embeddings, self.config.rope_interleaved)
            query = torch.cat((plain, rotary), dim=-1)
        latent, rotary_key = update_cache(latent, rotary_key, past_key_values, layer_idx, kwargs)
        return query, *self.expand(latent, rotary_key)

    def expand(self, latent: torch.Tensor, rotary_key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """latent (B, 1, S, kv_lora_rank), rotary_key (B, 1, S, qk_rope_head_dim) -> key (B, H, S, nope + rope), value
        (B, H, S, v_head_dim)."""
        expanded = self.kv_b_proj(latent[:, 0]).unflatten(-1, (-1, self.nope_dim + self.value_dim)).transpose(1, 2)
        key, value = expanded.split((self.nope_dim, self.value_dim), dim=-1)
        return torch.cat((key, rotary_key.expand(-1, key.shape[1], -1, -1)), dim=-1), value


ATTENTIONS.extend(latent=LatentAttention)
