"""The bidirectional encoder (BERT-like) and its heads."""

import torch
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .base import LLMPreTrainedModel  # experts: see @use_experts_implementation in feedforward.py
from .configuration import LLMEncoderConfig
from .heads import (
    LanguageModelHead,
    MultipleChoiceHead,
    PredictionTransform,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
    copy_fields,
    mean_token,
)
from .inputs import takes_inputs_of
from .stack import TransformerStack
from .visibility import Visibility


class LLMEncoderModel(TransformerStack):
    """Token ids to contextual vectors, every token seeing every other of its document."""

    config: LLMEncoderConfig
    is_causal = False

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        document_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        input_ids (batch, seq) int64, or inputs_embeds (batch, seq, embedding size); attention_mask (batch, seq), 0 at
        padding; token_type_ids, position_ids (batch, seq) int64; document_ids (batch, seq) int64: 0, 1, ... for the
        documents packed into a row, -1 for padding (found from `position_ids` that start again, if not passed).
        Returns `last_hidden_state` (batch, seq, hidden).
        """
        position_ids, documents = self.locate(input_ids, inputs_embeds, attention_mask, position_ids, document_ids)
        hidden_states = self.embed(input_ids, inputs_embeds, position_ids, token_type_ids)
        visibility = Visibility(self, hidden_states, documents, attention_mask, kwargs)
        hidden_states = self.run_layers(hidden_states, position_ids, visibility, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class _EncoderHead(TaskHead, LLMPreTrainedModel):
    config: LLMEncoderConfig
    backbone_class = LLMEncoderModel

    def pool(self, hidden_states, input_ids, attention_mask, **kwargs):
        if self.config.classifier_pooling == "cls":
            return hidden_states[:, 0]
        return mean_token(hidden_states, attention_mask)


class LLMEncoderForMaskedLM(LanguageModelHead, LLMPreTrainedModel):
    """An encoder that predicts masked tokens (https://arxiv.org/abs/1810.04805)."""

    config: LLMEncoderConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: LLMEncoderConfig):
        super().__init__(config)
        self.model = LLMEncoderModel(config)
        width = self.model.output_size
        self.head_transform = None
        if config.head_transform:
            size = config.embedding_size or config.hidden_size
            activation = config.head_transform_act or config.hidden_act
            self.head_transform = PredictionTransform(config, width, size, activation, config.head_transform_bias)
            width = size
        self.lm_head = self.make_head(width)
        self.post_init()

    def transform_hidden(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self.head_transform is None else self.head_transform(hidden_states)

    @takes_inputs_of(LLMEncoderModel)
    @can_return_tuple
    def forward(
        self,
        labels: torch.LongTensor | None = None,
        skip_logits: bool | None = None,
        output_router_logits: bool | None = None,
        **inputs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """
        As [`LLMEncoderModel`], and labels (batch, seq) int64: the original token at masked positions, -100 elsewhere.
        Returns logits (batch, seq, vocabulary), left out in training mode with labels or on `skip_logits=True`.
        """
        outputs = self.model(**inputs, output_router_logits=self.wants_router_logits(output_router_logits, labels))
        logits, loss = self.logits_and_loss(outputs.last_hidden_state, labels, skip_logits, **inputs)
        loss, _ = self.add_router_losses(
            loss,
            outputs.get("router_logits"),
            self.config,
            inputs.get("attention_mask"),
            inputs.get("document_ids"),
            self.row_weights(labels, **inputs),
        )
        return copy_fields(MaskedLMOutput, outputs, loss=loss, logits=logits)


class LLMEncoderForSequenceClassification(SequenceClassificationHead, _EncoderHead):
    pass


class LLMEncoderForTokenClassification(TokenClassificationHead, _EncoderHead):
    pass


class LLMEncoderForQuestionAnswering(QuestionAnsweringHead, _EncoderHead):
    pass


class LLMEncoderForMultipleChoice(MultipleChoiceHead, _EncoderHead):
    pass
