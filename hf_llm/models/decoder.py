"""The causal decoder (GPT- and Llama-like) and its heads."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache, StaticLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MoeCausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import Attention
from .base import LLMPreTrainedModel  # experts: see @use_experts_implementation in feedforward.py
from .compat import CACHE, takes_cache
from .configuration import LLMDecoderConfig
from .generation import DecoderGenerationMixin
from .heads import (
    LanguageModelHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
    copy_fields,
    kept_states,
    last_token,
)
from .inputs import check_labels, check_packed_source, check_source, takes_inputs_of
from .stack import TransformerStack
from .visibility import Documents, Source, Visibility, find_documents, past_length


class LLMDecoderModel(TransformerStack):
    """Token ids to contextual vectors, every token seeing itself and those before it in its document."""

    config: LLMDecoderConfig
    is_causal = True
    _can_record_outputs = {
        **LLMPreTrainedModel._can_record_outputs,
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attn"),
    }

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        document_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_document_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        input_ids (batch, seq) int64, or inputs_embeds (batch, seq, embedding size); attention_mask (batch, past + seq)
        with 0 at padding; position_ids, token_type_ids (batch, seq) int64; document_ids (batch, seq) int64: 0, 1, ...
        for the documents packed into a row, -1 for padding (found from `position_ids` that start again, if not
        passed). encoder_hidden_states (batch, source, width), encoder_attention_mask and encoder_document_ids (batch,
        source): for decoders with cross-attention. Returns `last_hidden_state` (batch, seq, hidden) and the cache.
        """
        past_key_values, use_cache = self._prepare_cache(past_key_values, use_cache, encoder_hidden_states)
        self_cache = getattr(past_key_values, "self_attention_cache", past_key_values)
        position_ids, documents = self.locate(
            input_ids, inputs_embeds, attention_mask, position_ids, document_ids, self_cache
        )
        hidden_states = self.embed(input_ids, inputs_embeds, position_ids, token_type_ids)
        source = None
        if encoder_hidden_states is not None:
            check_source(self.config, encoder_hidden_states, encoder_attention_mask, hidden_states.shape[0])
            check_packed_source(documents is not None, encoder_document_ids)
            source = Source(encoder_hidden_states, encoder_attention_mask, encoder_document_ids)
        visibility = Visibility(self, hidden_states, documents, attention_mask, kwargs, self_cache, source)
        hidden_states = self.run_layers(
            hidden_states,
            position_ids,
            visibility,
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            use_cache=use_cache,
            **kwargs,
        )
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states, **{CACHE: past_key_values})

    def _prepare_cache(
        self, cache: Cache | None, use_cache: bool | None, encoder_hidden_states: torch.Tensor | None
    ) -> tuple[Cache | None, bool | None]:
        """The cache that the layers fill, and `use_cache` for them."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if past_length(cache):
                raise ValueError("Gradient checkpointing cannot train behind a cache that holds tokens: pass none.")
            return None, False  # a layer that is computed again would append its keys again
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
            if self.config.add_cross_attention:  # the source's cache has no configuration: it never slides
                cache = EncoderDecoderCache(cache, DynamicCache())
        cross_cache = getattr(cache, "cross_attention_cache", None)
        if cross_cache is not None and any(cross_cache.is_sliding):
            _hold_whole_source(cache, encoder_hidden_states)
        return cache, use_cache


def _hold_whole_source(cache: EncoderDecoderCache, encoder_hidden_states: torch.Tensor | None) -> None:
    """Make an empty cross-attention cache hold the whole source: transformers' slides where the decoder's layers do.
    Raises ValueError if it has slid already."""
    if encoder_hidden_states is None or any(cache.is_updated.values()):
        raise ValueError(
            "The cross-attention cache slides, but must hold the whole source: make it without a config, as in "
            "`EncoderDecoderCache(DynamicCache(config=...), DynamicCache())`."
        )
    layers, length = cache.cross_attention_cache.layers, encoder_hidden_states.shape[1]
    for i, layer in enumerate(layers):
        if layer.is_sliding:
            layers[i] = StaticLayer(max_cache_len=length) if isinstance(layer, StaticLayer) else DynamicLayer()


@dataclass
class MoeCausalLMOutputWithCrossAttentions(MoeCausalLMOutputWithPast):
    """Beside what mixtures of experts give, the weights of cross-attention."""

    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


class LLMDecoderForCausalLM(LanguageModelHead, LLMPreTrainedModel, DecoderGenerationMixin):
    """A decoder that predicts the next token."""

    config: LLMDecoderConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: LLMDecoderConfig):
        super().__init__(config)
        self.model = LLMDecoderModel(config)
        self.lm_head = self.make_head(self.model.output_size)
        self.post_init()

    @takes_inputs_of(LLMDecoderModel)
    @can_return_tuple
    def forward(
        self,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        output_router_logits: bool | None = None,
        **inputs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions | MoeCausalLMOutputWithCrossAttentions:
        """
        As [`LLMDecoderModel`], and labels (batch, seq) int64, aligned with `input_ids` and shifted here, -100 where
        there is no target; a document's first token is never one. logits_to_keep: how many last positions, or which,
        to give logits of (0 for all; see `kept_states`). Returns logits (batch, seq, vocabulary), left out in training
        mode with labels or on `skip_logits=True`.
        """
        if labels is not None and inputs.get("use_cache") is None and self.training:
            inputs["use_cache"] = False
        outputs = self.model(**inputs, output_router_logits=self.wants_router_logits(output_router_logits, labels))
        hidden_states, kept = outputs.last_hidden_state, None
        if not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            # torch copies a frozen head for every row of a strided slice
            kept = kept_states(hidden_states, logits_to_keep).contiguous()
        targets, mask, document_ids = (inputs.get(name) for name in ("shift_labels", "attention_mask", "document_ids"))
        if targets is None and labels is not None:
            check_labels(labels, hidden_states)
            if document_ids is not None:
                document_ids = document_ids[:, -labels.shape[1] :]  # those of a cache may come before
            documents = find_documents(document_ids, inputs.get("position_ids"), mask, None, labels.shape)
            targets = next_tokens(labels, documents, inputs.get("ignore_index", -100))
        logits, loss = self.logits_and_loss(hidden_states, targets, skip_logits, kept, **inputs)
        weights = self.row_weights(targets, **inputs)
        loss, aux_loss = self.add_router_losses(
            loss, outputs.get("router_logits"), self.config, mask, document_ids, weights
        )
        fields = {"loss": loss, "logits": logits}
        if self.config.is_moe:
            return copy_fields(MoeCausalLMOutputWithCrossAttentions, outputs, **fields, aux_loss=aux_loss)
        return copy_fields(CausalLMOutputWithCrossAttentions, outputs, **fields)


def next_tokens(labels: torch.LongTensor, documents: Documents | None, ignore_index: int = -100) -> torch.LongTensor:
    """Targets (batch, seq): the label of the next position, none at the end of a document or row."""
    if documents is not None:
        labels = labels.masked_fill(documents.begins(), ignore_index)
    return F.pad(labels[:, 1:], (0, 1), value=ignore_index)


class _DecoderHead(TaskHead, LLMPreTrainedModel):
    config: LLMDecoderConfig
    backbone_class = LLMDecoderModel
    output_classes = {**TaskHead.output_classes, "sequence": SequenceClassifierOutputWithPast}

    def pool(self, hidden_states, input_ids, attention_mask, **kwargs):
        return last_token(hidden_states, input_ids, attention_mask, self.config.pad_token_id)


class LLMDecoderForSequenceClassification(SequenceClassificationHead, _DecoderHead):
    pass


class LLMDecoderForTokenClassification(TokenClassificationHead, _DecoderHead):
    pass


class LLMDecoderForQuestionAnswering(QuestionAnsweringHead, _DecoderHead):
    pass
