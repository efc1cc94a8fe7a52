"""The encoder-decoder (T5- and BART-like) and its heads."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqMoEModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
    Seq2SeqSequenceClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .base import LLMPreTrainedModel
from .compat import CACHE, takes_cache
from .configuration import LLMEncoderDecoderConfig
from .decoder import LLMDecoderModel
from .encoder import LLMEncoderModel
from .generation import EncoderDecoderGenerationMixin
from .heads import (
    LanguageModelHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
    copy_fields,
    last_chosen,
    last_token,
)
from .inputs import takes_inputs_of
from .operators import values_are_known
from .visibility import find_documents


RECORDED = ("hidden_states", "attentions", "router_logits")  # of either half


@dataclass
class Seq2SeqTokenClassifierOutput(Seq2SeqSequenceClassifierOutput):
    """Labels of target tokens: logits (batch, target, labels)."""


def shift_right(labels: torch.LongTensor, start_token_id: int | None, pad_token_id: int) -> torch.LongTensor:
    """Decoder inputs (batch, seq) of labels: one to the right, -100 replaced by padding, first the start token or, if
    that is `None`, the last real token of the row."""
    labels = labels.masked_fill(labels == -100, pad_token_id)
    if start_token_id is None:
        ends = (labels != pad_token_id).sum(-1, keepdim=True) - 1
        return torch.cat((labels.gather(-1, ends.clamp(min=0)), labels[:, :-1]), dim=-1)
    return torch.nn.functional.pad(labels[:, :-1], (1, 0), value=start_token_id)


class _EncoderDecoder(LLMPreTrainedModel):
    """What the body and its heads share: two halves, with one token embedding or two."""

    config: LLMEncoderDecoderConfig
    _can_record_outputs = {}

    def get_encoder(self, modality=None):
        return self.base_model.encoder

    def get_input_embeddings(self):
        return self.base_model.encoder.embed_tokens

    def set_input_embeddings(self, value):
        self.base_model.encoder.embed_tokens = value
        if self.config.share_embeddings:
            self.base_model.decoder.embed_tokens = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs):
        """As in transformers; both halves get the new vocabulary, whether or not they share its embedding."""
        if not self.config.share_embeddings:
            self.base_model.decoder.resize_token_embeddings(new_num_tokens, *args, **kwargs)
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.config.encoder.vocab_size = self.get_input_embeddings().num_embeddings
        return embeddings


class LLMEncoderDecoderModel(_EncoderDecoder):
    """Source tokens to contextual vectors of target tokens."""

    _tied_weights_keys = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}

    def __init__(self, config: LLMEncoderDecoderConfig):
        super().__init__(config)
        self.encoder = LLMEncoderModel(config.encoder)
        self.decoder = LLMDecoderModel(config.decoder)
        if config.share_layers:  # saving looks for the names here
            self._tied_weights_keys = {**self._tied_weights_keys, **self._layer_ties()}
        self.post_init()

    def _layer_ties(self) -> dict[str, str]:
        """The encoder's weights that `share_layers` ties to the decoder's."""
        names = [name for name, _ in self.encoder.named_parameters(remove_duplicate=False)]
        own = ("embed_tokens.", "position_bias.")
        return {f"encoder.{name}": f"decoder.{name}" for name in names if not any(part in name for part in own)}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict:
        """The halves share one embedding if `share_embeddings`, whether or not the head is tied to it, and the rest if
        `share_layers`."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels)
        embedding, ties = "encoder.embed_tokens.weight", self._tied_weights_keys
        shared = dict.fromkeys(ties, self.config.share_layers) | {embedding: self.config.share_embeddings}
        return {name: source for name, source in ties.items() if shared[name]}

    @property
    def output_size(self) -> int:
        """Width of `last_hidden_state`."""
        return self.decoder.output_size

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        decoder_token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        document_ids: torch.LongTensor | None = None,
        decoder_document_ids: torch.LongTensor | None = None,
        encoder_outputs=None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqMoEModelOutput:
        """
        input_ids, attention_mask, token_type_ids, position_ids, document_ids (batch, source): see [`LLMEncoderModel`];
        those with `decoder_` (batch, target): see [`LLMDecoderModel`]. A document has the same id in source and
        target; where ids are not passed, they are found from positions that start again, and the n-th document of the
        target belongs to the n-th of the source. The decoder's inputs must be passed: BART makes them from the source
        where they are missing, but then a forgotten argument goes unnoticed. Returns `last_hidden_state` (batch,
        target, hidden) of the decoder.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                document_ids=document_ids,
                **kwargs,
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        documents = find_documents(document_ids, position_ids, attention_mask, None, encoder_outputs[0].shape[:2])
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("Pass `decoder_input_ids`, `decoder_inputs_embeds` or `labels`.")
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            token_type_ids=decoder_token_type_ids,
            position_ids=decoder_position_ids,
            document_ids=decoder_document_ids,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            encoder_document_ids=None if documents is None else documents.ids,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            **{CACHE: past_key_values, **kwargs},
        )
        return Seq2SeqMoEModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            **{CACHE: decoder_outputs.get(CACHE)},
            **{f"encoder_{name}": encoder_outputs.get(name) for name in RECORDED},
            **{f"decoder_{name}": decoder_outputs.get(name) for name in RECORDED},
        )


class LLMEncoderDecoderForConditionalGeneration(LanguageModelHead, _EncoderDecoder, EncoderDecoderGenerationMixin):
    """An encoder-decoder that writes text (summaries, translations, restored spans)."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: LLMEncoderDecoderConfig):
        super().__init__(config)
        self.model = LLMEncoderDecoderModel(config)
        self.lm_head = self.make_head(self.model.output_size)
        self.loss_type = "ForMaskedLM"  # labels are not shifted; the class's name would say otherwise
        self.post_init()

    @property
    def head_config(self):
        return self.config.decoder

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Decoder inputs of labels (batch, target), for collators."""
        start = self._start_token_id() if self.config.decoder_start == "start_token" else None
        return shift_right(labels, start, self._pad_token_id())

    def _start_token_id(self) -> int:
        for source in (self.config, self.generation_config, self.config.decoder):
            for name in ("decoder_start_token_id", "bos_token_id"):
                if getattr(source, name, None) is not None:
                    return getattr(source, name)
        raise ValueError("Set `decoder_start_token_id` in the configuration: the decoder's inputs begin with it.")

    def _pad_token_id(self) -> int:
        pad = self.config.pad_token_id
        return self._start_token_id() if pad is None else pad

    @takes_inputs_of(LLMEncoderDecoderModel)
    @can_return_tuple
    def forward(
        self,
        labels: torch.LongTensor | None = None,
        skip_logits: bool | None = None,
        output_router_logits: bool | None = None,
        **inputs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """
        As [`LLMEncoderDecoderModel`], and labels (batch, target) int64, aligned with `decoder_input_ids` and not
        shifted here, -100 where there is no target; without `decoder_input_ids`, the labels are shifted right to make
        them. Returns logits (batch, target, vocabulary), left out in training mode with labels or on
        `skip_logits=True`.
        """
        if labels is not None:
            inputs["use_cache"] = False
            if inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None:
                if inputs.get("decoder_document_ids") is not None:
                    raise ValueError(
                        "With packed documents, pass `decoder_input_ids`: each document is shifted apart."
                    )
                inputs["decoder_input_ids"] = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(**inputs, output_router_logits=self.wants_router_logits(output_router_logits, labels))
        logits, loss = self.logits_and_loss(outputs.last_hidden_state, labels, skip_logits, **inputs)
        weights = self.row_weights(labels, **inputs)
        for half, config, router_logits in (
            ("", self.config.encoder, outputs.encoder_router_logits),
            ("decoder_", self.config.decoder, outputs.decoder_router_logits),
        ):
            mask, document_ids = inputs.get(f"{half}attention_mask"), inputs.get(f"{half}document_ids")
            loss, _ = self.add_router_losses(loss, router_logits, config, mask, document_ids, weights)
        return copy_fields(Seq2SeqLMOutput, outputs, loss=loss, logits=logits)


class _EncoderDecoderHead(TaskHead, _EncoderDecoder):
    """Task heads read the decoder, which is given the source once more, shifted right (BART's and T5's way)."""

    backbone_class = LLMEncoderDecoderModel
    output_classes = {
        "sequence": Seq2SeqSequenceClassifierOutput,
        "token": Seq2SeqTokenClassifierOutput,
        "question": Seq2SeqQuestionAnsweringModelOutput,
    }

    def pool(self, hidden_states, input_ids, attention_mask, **kwargs):
        if self.config.classifier_pooling == "eos":
            return last_chosen(hidden_states, self._ends(input_ids))
        offset = 1 if self.config.classifier_pooling == "next" else 0
        if kwargs.get("decoder_input_ids") is not None:  # given, not made from the source: its own last token
            input_ids, attention_mask, offset = kwargs["decoder_input_ids"], kwargs.get("decoder_attention_mask"), 0
        return last_token(hidden_states, input_ids, attention_mask, self.config.pad_token_id, offset)

    def _ends(self, input_ids: torch.LongTensor | None) -> torch.Tensor:
        """Where the source has an end token, (batch, source) bool."""
        ends = self.config.eos_token_id
        if input_ids is None or ends is None:
            raise ValueError("`classifier_pooling='eos'` needs `input_ids`, and `eos_token_id` in the configuration.")
        found = torch.isin(input_ids, torch.as_tensor(ends, device=input_ids.device))
        if values_are_known() and not bool(found.any(-1).all()):
            raise ValueError(f"`classifier_pooling='eos'`: a text of the batch has no `eos_token_id={ends}`.")
        return found

    def _backbone(self, input_ids=None, decoder_input_ids=None, decoder_inputs_embeds=None, **inputs):
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Pass `input_ids`, or `decoder_input_ids` beside `inputs_embeds`.")
            pad = self.config.pad_token_id or 0
            start = None
            if self.config.decoder_start == "start_token":
                start = pad if self.config.decoder_start_token_id is None else self.config.decoder_start_token_id
            decoder_input_ids = shift_right(input_ids, start, pad)
        return super()._backbone(
            input_ids=input_ids,
            decoder_input_ids=decoder_input_ids,
            decoder_inputs_embeds=decoder_inputs_embeds,
            **inputs,
        )


class LLMEncoderDecoderForSequenceClassification(SequenceClassificationHead, _EncoderDecoderHead):
    pass


class LLMEncoderDecoderForTokenClassification(TokenClassificationHead, _EncoderDecoderHead):
    pass


class LLMEncoderDecoderForQuestionAnswering(QuestionAnsweringHead, _EncoderDecoderHead):
    pass
