"""The causal decoder (GPT- and Llama-like) and its heads."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache, StaticLayer
from transformers.generation import GenerationMixin
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

from .attention import ATTENTIONS, Attention
from .base import LLMPreTrainedModel  # experts: see @use_experts_implementation in feedforward.py
from .compat import CACHE, takes_cache
from .configuration import LLMDecoderConfig
from .decoding import TakesTokenSteps, token_steps
from .documents import first_tokens, pass_documents, past_length, positions_in_documents, resolve_documents
from .heads import (
    LanguageModelHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
    kept_states,
    last_token,
)
from .inputs import check_labels, check_source
from .masks import AttentionInputs, cross_attention_inputs, self_attention_inputs
from .operators import values_are_known
from .packing import real_documents, repad, row_documents, unpad, unpadded_cross
from .positions import POSITIONS
from .stack import TransformerStack


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
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if past_length(past_key_values):
                raise ValueError("Gradient checkpointing cannot train behind a cache that holds tokens: pass none.")
            past_key_values, use_cache = None, False  # a layer that is computed again would append its keys again
        if use_cache and past_key_values is None:
            past_key_values = self._new_cache()
        cross_cache = getattr(past_key_values, "cross_attention_cache", None)
        if cross_cache is not None and any(cross_cache.is_sliding):
            _hold_whole_source(past_key_values, encoder_hidden_states)
        self_cache = getattr(past_key_values, "self_attention_cache", past_key_values)
        position_ids, documents = self.locate(
            input_ids, inputs_embeds, attention_mask, position_ids, document_ids, self_cache
        )
        hidden_states = self.embed(input_ids, inputs_embeds, position_ids, token_type_ids)
        if encoder_hidden_states is not None:
            self._check_source(encoder_hidden_states, encoder_attention_mask, hidden_states.shape[0])
            _check_packing(documents, encoder_document_ids)

        packed = None
        if past_key_values is None:
            packed = self.unpadded_documents(hidden_states, documents, attention_mask, kwargs)
        cross = AttentionInputs()
        if encoder_hidden_states is not None and packed is None:
            cross = cross_attention_inputs(
                self.config,
                hidden_states,
                encoder_hidden_states,
                encoder_attention_mask,
                documents,
                encoder_document_ids,
                0 if self_cache is None else past_length(self_cache),
            )
        elif encoder_hidden_states is not None:
            encoder_documents = real_documents(encoder_document_ids, encoder_attention_mask)
            if encoder_documents is None:
                encoder_documents = packed.new_zeros(encoder_hidden_states.shape[:2])
            encoder_hidden_states, keywords = unpadded_cross(
                self.config, packed, encoder_documents, encoder_hidden_states
            )
            cross = AttentionInputs(keywords=keywords)
        if packed is not None:
            hidden_states, position_ids, documents = unpad(packed, hidden_states, position_ids, row_documents(packed))
            attention_mask = None
        attention = self_attention_inputs(
            self.config,
            hidden_states,
            attention_mask,
            self_cache,
            documents,
            self.attends_causally(kwargs),
            self.position_bias,
            unpadded=packed is not None,
        )
        hidden_states = self.run_layers(
            hidden_states,
            position_ids,
            attention,
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            cross_attention=cross,
            use_cache=use_cache,
            **kwargs,
        )
        if packed is not None:
            hidden_states = repad(packed, hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states, **{CACHE: past_key_values})

    def _check_source(self, states: torch.Tensor, mask, batch: int) -> None:
        if not self.config.add_cross_attention:
            raise ValueError(
                "`encoder_hidden_states` were passed, but `add_cross_attention=False`: nothing reads them."
            )
        check_source(states, mask, self.config.cross_attention_hidden_size or self.config.hidden_size, batch)

    def token_steps(self):
        return token_steps(self)

    def _new_cache(self) -> Cache:
        cache = DynamicCache(config=self.config)
        # the cross-attention cache has no configuration: it never slides
        return EncoderDecoderCache(cache, DynamicCache()) if self.config.add_cross_attention else cache


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


def _check_packing(documents: torch.LongTensor | None, encoder_documents: torch.LongTensor | None) -> None:
    """Raise ValueError if only one of the two sides of cross-attention is packed."""
    if documents is not None and encoder_documents is None:
        raise ValueError("Documents are packed in the decoder: pass `encoder_document_ids` as well.")
    if documents is None and encoder_documents is not None and values_are_known():
        if bool(encoder_documents.max() > 0):
            raise ValueError("Documents are packed in the encoder: pass the decoder's `document_ids` as well.")


def outgrows_longrope(
    config: LLMDecoderConfig, cache: Cache | None, new: int | None, position_ids: torch.LongTensor | None
) -> bool:
    """Whether longrope rotates `new` tokens by its long frequencies, but rotated those of the cache by its short ones.

    position_ids (batch, cached + new), or `None` where the place in the row is the position."""
    limit = config.longrope_limit
    if limit is None or new is None or cache is None:
        return False
    past = int(past_length(cache))
    if past and position_ids is not None and position_ids.shape[-1] == past + new:
        return bool(position_ids[:, :past].max() < limit <= position_ids.max())
    return 0 < past <= limit < past + new


@dataclass
class MoeCausalLMOutputWithCrossAttentions(MoeCausalLMOutputWithPast):
    """Beside what mixtures of experts give, the weights of cross-attention."""

    cross_attentions: tuple[torch.FloatTensor, ...] | None = None


class LLMDecoderForCausalLM(LanguageModelHead, LLMPreTrainedModel, TakesTokenSteps, GenerationMixin):
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

    def init_continuous_batching(self, *args, **kwargs):
        """As in transformers; refused where positions bias the scores, since a paged cache does not say how far apart
        two tokens are, and where something else than keys and values is cached."""
        refused = {
            "position_embedding": POSITIONS[self.config.position_embedding].kind == "bias",
            "attention_type": not ATTENTIONS[self.config.attention_type].fits_paged_cache,
        }
        for field in (field for field, no in refused.items() if no):
            raise ValueError(
                f"Continuous batching cannot honour `{field}={getattr(self.config, field)!r}`: use `generate`."
            )
        return super().init_continuous_batching(*args, **kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """As in transformers; where `document_ids` are passed, positions are counted in each document."""
        if model_kwargs.get("document_ids") is not None:
            return positions_in_documents(model_kwargs["document_ids"])
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, document_ids=None, **kwargs):
        """As in transformers, but when a text outgrows longrope's short frequencies, its cached keys have been rotated
        by the wrong ones: the cache is computed anew, once (as in transformers' Phi-3). New tokens belong to the
        prompt's last document."""
        new, cache = kwargs.get("next_sequence_length"), kwargs.get(CACHE)
        if outgrows_longrope(self.config, cache, new, kwargs.get("position_ids")):
            if inputs_embeds is not None:  # of the prompt; what has been generated since has ids
                generated = past_length(cache) + new - inputs_embeds.shape[1]
                embeddings = self.get_input_embeddings()(input_ids[:, input_ids.shape[1] - generated :])
                inputs_embeds, kwargs["is_first_iteration"] = torch.cat((inputs_embeds, embeddings), dim=1), True
            kwargs[CACHE] = kwargs["next_sequence_length"] = None
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        is_first = kwargs.get("is_first_iteration", False)
        pass_documents(inputs, document_ids, inputs.get(CACHE), kwargs.get("attention_mask"), is_first)
        return inputs

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        document_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions | MoeCausalLMOutputWithCrossAttentions:
        """
        As [`LLMDecoderModel`], and labels (batch, seq) int64, aligned with `input_ids` and shifted here, -100 where
        there is no target; a document's first token is never one. logits_to_keep: how many last positions, or which,
        to give logits of (0 for all; see `kept_states`). Returns logits (batch, seq, vocabulary), left out in training
        mode with labels or on `skip_logits=True`.
        """
        if labels is not None and use_cache is None and self.training:
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            token_type_ids=token_type_ids,
            document_ids=document_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            output_router_logits=self.wants_router_logits(output_router_logits, labels),
            **{CACHE: past_key_values, **kwargs},
        )
        hidden_states = outputs.last_hidden_state
        kept = None
        if not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            # torch copies a frozen head for every row of a strided slice
            kept = kept_states(hidden_states, logits_to_keep).contiguous()
        targets = kwargs.pop("shift_labels", None)
        if targets is None and labels is not None:
            check_labels(labels, hidden_states)
            if document_ids is not None:
                document_ids = document_ids[:, -labels.shape[1] :]  # those of a cache may come before
            documents = resolve_documents(document_ids, position_ids, attention_mask, None, labels.shape)
            targets = next_tokens(labels, documents, kwargs.get("ignore_index", -100))
        logits, loss = self.logits_and_loss(hidden_states, targets, skip_logits, kept, **kwargs)
        weights = self.row_weights(targets, **kwargs)
        loss, aux_loss = self.add_router_losses(
            loss, outputs.get("router_logits"), self.config, attention_mask, document_ids, weights
        )
        fields = {
            "loss": loss,
            "logits": logits,
            CACHE: outputs.get(CACHE),
            "hidden_states": outputs.hidden_states,
            "attentions": outputs.attentions,
            "cross_attentions": outputs.cross_attentions,
        }
        if self.config.is_moe:
            router_logits = outputs.get("router_logits")
            return MoeCausalLMOutputWithCrossAttentions(**fields, aux_loss=aux_loss, router_logits=router_logits)
        return CausalLMOutputWithCrossAttentions(**fields)


def next_tokens(
    labels: torch.LongTensor, documents: torch.LongTensor | None, ignore_index: int = -100
) -> torch.LongTensor:
    """Targets (batch, seq): the label of the next position, none at the end of a document or row."""
    if documents is not None:
        labels = labels.masked_fill(first_tokens(documents[:, -labels.shape[1] :]), ignore_index)
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
