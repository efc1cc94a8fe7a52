"""A stack of layers with its embeddings: the body of encoder and decoder."""

import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from .base import LLMPreTrainedModel
from .configuration import LLMStackConfig
from .inputs import IdEmbedding, check_aligned, check_length, check_token_types, check_tokens
from .layer import TransformerLayer
from .norms import get_norm
from .operators import decode_token
from .positions import POSITIONS, for_heads
from .visibility import Documents, Visibility, find_documents, past_length


class TokenEmbedding(IdEmbedding):
    """An embedding with a factor on its output (Gemma, Granite, BART's `scale_embedding`)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, multiplier: float | None = None):
        super().__init__(num_embeddings, embedding_dim, "input_ids", "vocab_size")
        self.embed_scale = multiplier  # the name by which PEFT's adapters of embeddings know it

    def forward(self, input_ids: torch.LongTensor) -> torch.Tensor:
        embeddings = super().forward(input_ids)
        return embeddings if self.embed_scale is None else embeddings * self.embed_scale


class TransformerStack(LLMPreTrainedModel):
    """Embeddings, layers, final norm. Subclasses say what may see what, in `forward`."""

    config: LLMStackConfig
    is_causal: bool

    def __init__(self, config: LLMStackConfig):
        super().__init__(config)
        self.is_causal = self.is_causal and getattr(config, "is_causal", True)  # transformers' own switch
        token_size = config.embedding_size or config.hidden_size
        # the width of positions, token types and the embedding norm
        sum_size = token_size if config.embedding_projection == "embeddings" else config.hidden_size
        self.embed_tokens = TokenEmbedding(config.vocab_size, token_size, config.embedding_multiplier)
        self.embed_token_types = None
        if config.type_vocab_size:
            self.embed_token_types = IdEmbedding(config.type_vocab_size, sum_size, "token_type_ids", "type_vocab_size")
        self.embed_projection = self.output_projection = None
        if config.embedding_projection is not None:
            self.embed_projection = nn.Linear(token_size, config.hidden_size, bias=config.embedding_projection_bias)
        if config.embedding_projection == "tokens":
            self.output_projection = nn.Linear(config.hidden_size, token_size, bias=config.embedding_projection_bias)
        self.embed_norm = get_norm(config, sum_size) if config.embedding_norm else None

        positions = POSITIONS[config.position_embedding]
        kind = positions.kind
        self.embed_positions = positions(config, sum_size) if kind == "embedding" else None
        self.rotary_emb = _rotary(config) if kind == "rotary" else None
        self.position_bias = None
        if kind == "bias" and not config.relative_attention_bias_per_layer:
            self.position_bias = positions(config, bidirectional=not self.is_causal)

        distinct = config.num_hidden_layers if config.layer_sharing is None else max(config.layer_sharing) + 1
        self.layers = nn.ModuleList(TransformerLayer(config, i, self.is_causal) for i in range(distinct))
        self.norm = get_norm(config) if config.final_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def output_size(self) -> int:
        """Width of `last_hidden_state`."""
        return self.config.output_size

    def locate(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask,
        position_ids: torch.LongTensor | None,
        document_ids: torch.LongTensor | None,
        cache: Cache | None = None,
    ) -> tuple[torch.LongTensor, Documents | None]:
        """Where each token stands: its position (batch or 1, seq), and the documents of all tokens so far
        (batch, past + seq), or `None` where nothing is packed.

        Positions that are not passed are counted in each document, or by `position_ids_source`.
        """
        tokens = check_tokens(input_ids, inputs_embeds, self.config.embedding_size or self.config.hidden_size)
        past, length = past_length(cache), tokens.shape[1]
        check_aligned(tokens, attention_mask, position_ids, past)
        documents = find_documents(document_ids, position_ids, attention_mask, cache, tokens.shape[:2])
        if position_ids is not None:
            return position_ids, documents
        if documents is not None:
            return documents.positions()[:, -length:], documents
        if self.config.position_embedding == "learned":
            check_length(length, past, self.config.max_position_embeddings)
        return default_positions(self.config, tokens, input_ids, attention_mask, past), None

    def embed(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.LongTensor,
        token_type_ids: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """Token (+ type + position) embeddings (batch, seq, hidden), normalised and projected as configured."""
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        early = self.config.embedding_projection == "tokens"
        if early:
            hidden_states = self.embed_projection(hidden_states)
        if token_type_ids is not None:
            check_token_types(token_type_ids, hidden_states, self.config.type_vocab_size)
        if self.embed_token_types is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros(hidden_states.shape[:2], dtype=torch.long, device=hidden_states.device)
            hidden_states = hidden_states + self.embed_token_types(token_type_ids)
        if self.embed_positions is not None:
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states.dtype)
        if self.embed_norm is not None:
            hidden_states = self.embed_norm(hidden_states)
        if self.config.embedding_dropout:
            hidden_states = F.dropout(hidden_states, self.config.embedding_dropout, self.training)
        if self.embed_projection is not None and not early:
            hidden_states = self.embed_projection(hidden_states)
        return hidden_states

    def run_layers(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.LongTensor,
        visibility: Visibility,
        past_key_values: Cache | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """All layers and the final norm: (batch, seq, hidden) -> the same, or (batch, seq, embedding_size); on real
        tokens alone where `visibility` says so."""
        rows, layers_see, cross = visibility.rows, visibility.layers, visibility.cross
        if rows is not None:
            hidden_states, position_ids = rows.unpad(hidden_states), rows.unpad(position_ids)
        if visibility.source_rows is not None:
            encoder_hidden_states = visibility.source_rows.unpad(encoder_hidden_states)
        rotations = self._rotations(hidden_states, position_ids)
        decoded = None
        if not torch.compiler.is_compiling():
            decoded = decode_token(
                hidden_states, self, rotations, layers_see, cross, past_key_values, encoder_hidden_states, kwargs
            )
        if decoded is not None:
            hidden_states = decoded
        else:
            window, layers = self.config.sliding_window, list(self.layers)
            for i, (place, layer_type, rotates) in enumerate(self.plan()):
                inputs = layers_see[layer_type]
                hidden_states = layers[place](
                    hidden_states,
                    inputs.mask,
                    inputs.bias,
                    encoder_hidden_states,
                    cross.mask,
                    position_embeddings=rotations.get(layer_type) if rotates else None,
                    past_key_values=past_key_values,
                    layer_idx=i,
                    sliding_window=window if layer_type == "sliding_attention" else None,
                    distance=inputs.distance,
                    cross_attention_kwargs=cross.keywords,
                    position_ids=position_ids,
                    **{**inputs.keywords, **kwargs},  # lengths that the caller gives come first
                )
        hidden_states = self.norm(hidden_states)
        if self.output_projection is not None:
            hidden_states = self.output_projection(hidden_states)
        return hidden_states if rows is None else rows.repad(hidden_states)

    def plan(self) -> Iterator[tuple[int, str, bool]]:
        """For each layer in turn: which of the distinct layers it is, its type, and whether it rotates."""
        config = self.config
        order = config.layer_sharing or range(config.num_hidden_layers)
        return zip(order, config.layer_types, config.rope_layers or itertools.repeat(True))

    def _rotations(self, hidden_states, position_ids) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """cos and sin for each layer type that rotates."""
        if self.rotary_emb is None:
            return {}
        if isinstance(self.rotary_emb, nn.ModuleDict):
            return {name: for_heads(*rotary(hidden_states, position_ids)) for name, rotary in self.rotary_emb.items()}
        rotation = for_heads(*self.rotary_emb(hidden_states, position_ids))
        return dict.fromkeys(self.config.layer_types, rotation)


def _rotary(config: LLMStackConfig) -> nn.Module:
    """One rotary embedding, or one for each layer type that has its own parameters."""
    rotary, nested = POSITIONS[config.position_embedding], config.nested_rope_parameter_keys(config.rope_parameters)
    return nn.ModuleDict({name: rotary(config, name) for name in config.rotary_dim}) if nested else rotary(config)


def default_positions(
    config, tokens: torch.Tensor, input_ids: torch.LongTensor | None, attention_mask, past: int | torch.Tensor
) -> torch.LongTensor:
    """Positions (batch or 1, seq) of tokens (batch, seq, ...) behind `past` others, by `config.position_ids_source`;
    padding has -1."""
    length, device = tokens.shape[1], tokens.device
    padded = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    if config.position_ids_source == "attention_mask" and padded:
        real = attention_mask.long()
        return (real.cumsum(-1) * real - 1)[:, -length:].clamp(min=-config.position_offset)
    if config.position_ids_source == "input_ids" and input_ids is not None:
        real = (input_ids != config.pad_token_id).long()
        return ((real.cumsum(-1) + past) * real - 1).clamp(min=-config.position_offset)
    return (torch.arange(length, device=device) + past)[None]
