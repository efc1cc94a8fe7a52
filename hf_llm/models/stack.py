"""A stack of layers with its embeddings: the body of encoder and decoder."""

import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from .base import LLMPreTrainedModel
from .configuration import LLMStackConfig
from .documents import default_positions, past_length, positions_in_documents, resolve_documents
from .inputs import IdEmbedding, check_aligned, check_token_types, check_tokens
from .layer import TransformerLayer
from .masks import AttentionInputs
from .norms import get_norm
from .packing import is_flash, real_documents, takes_lengths
from .positions import POSITIONS, for_heads


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
        past_key_values: Cache | None = None,
    ) -> tuple[torch.LongTensor, torch.LongTensor | None]:
        """Where each token stands: its position (batch or 1, seq), and the documents of all tokens so far
        (batch, past + seq), or `None` where nothing is packed.

        Positions that are not passed are counted in each document, or by `position_ids_source`.
        """
        tokens = check_tokens(input_ids, inputs_embeds, self.config.embedding_size or self.config.hidden_size)
        check_aligned(tokens, attention_mask, position_ids, past_length(past_key_values))
        length = tokens.shape[1]
        documents = resolve_documents(document_ids, position_ids, attention_mask, past_key_values, tokens.shape[:2])
        if position_ids is not None:
            return position_ids, documents
        if documents is not None:
            return positions_in_documents(documents)[:, -length:], documents
        if self.config.position_embedding == "learned":
            self._check_length(length, past_key_values)
        return (
            default_positions(self.config, input_ids, attention_mask, past_key_values, length, tokens.device),
            None,
        )

    def _check_length(self, length: int, past_key_values: Cache | None) -> None:
        past = past_length(past_key_values)
        if isinstance(past, int) and past + length > self.config.max_position_embeddings:
            raise ValueError(
                f"The input has {past + length} tokens, but learned positions end at "
                f"`max_position_embeddings={self.config.max_position_embeddings}`: shorten the input."
            )

    def attends_causally(self, kwargs: dict) -> bool:
        """Whether attention is causal: as the stack is, unless `is_causal` is passed (or set in the configuration)."""
        asked = kwargs.get("is_causal")
        return self.is_causal if asked is None else asked

    def unpadded_documents(
        self, hidden_states: torch.Tensor, documents: torch.LongTensor | None, attention_mask, kwargs: dict
    ) -> torch.LongTensor | None:
        """Documents (batch, seq), -1 at padding, where the layers are to run on real tokens alone; otherwise `None`.

        That is where attention takes lengths, unless the caller gives lengths or masks of its own or wants the hidden
        states of the batch as it is. Flash attention always does so; on a CPU it is done for packed documents, and not
        where router logits are wanted: what padding gives there stays as transformers' models give it.
        """
        config = self.config
        shown = kwargs.get("output_hidden_states")
        shown = config.output_hidden_states if shown is None else shown
        told = "cu_seq_lens_q" in kwargs or getattr(attention_mask, "ndim", 2) != 2 or isinstance(attention_mask, dict)
        if shown or told:
            return None
        if is_flash(config):
            return real_documents(documents, attention_mask)
        biased = self.position_bias is not None or config.relative_attention_bias_per_layer
        if documents is None or biased or kwargs.get("output_router_logits"):
            return None
        return real_documents(documents, attention_mask) if takes_lengths(config, hidden_states) else None

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
        attention: dict[str, AttentionInputs],
        past_key_values: Cache | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        cross_attention: AttentionInputs | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """All layers and the final norm: (batch, seq, hidden) -> the same, or (batch, seq, embedding_size)."""
        rotations = self._rotations(hidden_states, position_ids)
        cross_attention = cross_attention or AttentionInputs()
        steps = None if torch.compiler.is_compiling() else self.token_steps()
        if steps is not None and steps.fit(
            hidden_states, attention, past_key_values, encoder_hidden_states, cross_attention, kwargs
        ):
            hidden_states = steps(hidden_states, rotations, attention, past_key_values, cross_attention)
        else:
            window, layers = self.config.sliding_window, list(self.layers)
            for i, (place, layer_type, rotates) in enumerate(self.plan()):
                inputs = attention[layer_type]
                hidden_states = layers[place](
                    hidden_states,
                    inputs.mask,
                    inputs.bias,
                    encoder_hidden_states,
                    cross_attention.mask,
                    position_embeddings=rotations.get(layer_type) if rotates else None,
                    past_key_values=past_key_values,
                    layer_idx=i,
                    sliding_window=window if layer_type == "sliding_attention" else None,
                    distance=inputs.distance,
                    cross_attention_kwargs=cross_attention.keywords,
                    position_ids=position_ids,
                    **{**inputs.keywords, **kwargs},  # lengths that the caller gives come first
                )
        hidden_states = self.norm(hidden_states)
        return hidden_states if self.output_projection is None else self.output_projection(hidden_states)

    def token_steps(self):
        """What stands for the layers where single tokens are added, or `None`: see decoding.py."""
        return None

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
