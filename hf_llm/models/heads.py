"""Task heads, written once for the three stacks, as mixins over `self.model`."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .compat import CACHE, takes_cache
from .inputs import check_labels
from .losses import (
    classification_loss,
    linear_cross_entropy,
    logits_cross_entropy,
    router_losses,
    span_loss,
    transform_logits,
)
from .norms import get_norm


logger = logging.get_logger("transformers")


class PredictionTransform(nn.Module):
    """Dense layer, activation and (optionally) norm before a head: (..., in_size) -> (..., size)."""

    def __init__(self, config, in_size: int, size: int, activation: str, bias: bool = True, norm: bool = True):
        super().__init__()
        self.dense = nn.Linear(in_size, size, bias=bias)
        self.act_fn = ACT2FN[activation]
        self.norm = get_norm(config, size) if norm else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.act_fn(self.dense(hidden_states))
        return hidden_states if self.norm is None else self.norm(hidden_states)


class LanguageModelHead:
    """Logits and loss of `self.lm_head`. `self.head_config` is the configuration of the stack that feeds it."""

    @property
    def head_config(self):
        return self.config

    def make_head(self, width: int) -> nn.Linear:
        """The head on states (..., width). Raises ValueError if it is tied to embeddings of another width."""
        config = self.head_config
        embedding_width = config.embedding_size or config.hidden_size
        if self.config.tie_word_embeddings and width != embedding_width:
            raise ValueError(
                f"`tie_word_embeddings=True` ties a head on {width} dimensions to embeddings of "
                f"`embedding_size={embedding_width}`: set it to False, or narrow the head's input with "
                "`embedding_projection='tokens'` or, in an encoder, `head_transform=True`."
            )
        return nn.Linear(width, config.vocab_size, bias=config.lm_head_bias)

    def transform_hidden(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What stands between the last hidden state and the head."""
        return hidden_states

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., vocabulary)."""
        logits = self.lm_head(self.transform_hidden(hidden_states))
        return transform_logits(logits, self.head_config.logit_scale, self.head_config.final_logit_softcapping)

    def logits_and_loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.LongTensor | None,
        skip_logits: bool | None,
        logits_hidden: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        Logits and loss of hidden_states (batch, seq, hidden) against labels (batch, seq), which are not shifted here.

        Logits are left out where nobody reads them: in training mode with labels, or on `skip_logits=True`. The loss
        is then taken chunk by chunk. logits_hidden: the states to give logits of, if not all (`logits_to_keep`).
        """
        check_labels(labels, hidden_states)
        options = {
            name: kwargs[name]
            for name in ("num_items_in_batch", "label_smoothing", "z_loss", "ignore_index")
            if kwargs.get(name) is not None
        }
        skip = (self.training if skip_logits is None else skip_logits) and labels is not None
        if skip:
            loss = linear_cross_entropy(
                hidden_states,
                self.lm_head,
                labels,
                transform=self.transform_hidden,
                logit_scale=self.head_config.logit_scale,
                softcap=self.head_config.final_logit_softcapping,
                **options,
            )
            return None, loss
        logits = self.compute_logits(hidden_states if logits_hidden is None else logits_hidden)
        if labels is None:
            return logits, None
        complete = logits if logits_hidden is None else self.compute_logits(hidden_states)
        return logits, logits_cross_entropy(complete, labels, **options)

    @staticmethod
    def row_weights(labels, num_items_in_batch=None, ignore_index=-100, **kwargs) -> torch.Tensor | None:
        """Each row's share (batch,) of the targets of a larger batch that labels (batch, seq) are a part of; `None`
        where they are all there is."""
        if labels is None or num_items_in_batch is None:
            return None
        return (labels != ignore_index).sum(-1) / num_items_in_batch

    @staticmethod
    def add_router_losses(loss, router_logits, config, attention_mask, document_ids, row_weights=None):
        """Add the router losses of a stack to `loss`; returns it and the load-balancing loss, or (`loss`, None)."""
        if not router_logits:
            return loss, None
        is_real = real_tokens(attention_mask, document_ids)
        if is_real is not None and is_real.numel() != len(router_logits[0]):  # flash attention leaves padding out
            if row_weights is not None:
                place = is_real.reshape(-1, 1)
                router_logits = [
                    layer.new_zeros(len(place), layer.shape[-1]).masked_scatter(place, layer)
                    for layer in router_logits
                ]
            else:
                is_real = None
        balance, z = router_losses(router_logits, config.num_experts_per_tok, is_real, row_weights)
        if loss is not None:
            loss = loss + config.router_aux_loss_coef * balance + config.router_z_loss_coef * z
        return loss, balance

    def wants_router_logits(self, requested: bool | None, labels) -> bool:
        """Whether this forward pass must record router logits: on request, or for the training loss."""
        stacks = [stack for stack in self.config.stacks if stack.is_moe]
        if requested and not stacks:  # transformers asks every model for every output that it could record
            logger.warning_once("`output_router_logits=True`: there are no routers without sparse layers.")
        if requested is None:
            requested = any(stack.output_router_logits for stack in stacks)
        weighted = any(stack.router_aux_loss_coef or stack.router_z_loss_coef for stack in stacks)
        return bool(stacks) and (requested or (weighted and self.training and labels is not None))


class TaskHead:
    """
    A linear layer on the hidden states of `self.model`: of each text, or of each token.

    Attributes of a class:
        task: key of `output_classes`.
        num_outputs: width of the linear layer; `None` means `num_labels`.
        pools: whether it reads one state for each text, as `self.pool` gives it, instead of all.
    """

    task: str
    num_outputs: int | None = None
    pools = True
    output_classes = {
        "sequence": SequenceClassifierOutput,
        "token": TokenClassifierOutput,
        "question": QuestionAnsweringModelOutput,
        "choice": MultipleChoiceModelOutput,
    }

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels if self.num_outputs is None else self.num_outputs
        self.model = self.backbone_class(config)
        self.transform = self._make_transform(config)
        bias = config.classifier_bias if self.pools else True
        self.score = nn.Linear(self.model.output_size, self.num_labels, bias=bias)
        self.post_init()

    def _make_transform(self, config) -> nn.Module | None:
        # decoders have none of these fields, encoder-decoders the first and the activation
        if not getattr(config, "classifier_transform", False):
            return None
        if not (self.pools or getattr(config, "token_classifier_transform", False)):
            return None
        return PredictionTransform(
            config,
            self.model.output_size,
            self.model.output_size,
            config.classifier_activation,
            bias=getattr(config, "classifier_transform_bias", True),
            norm=getattr(config, "classifier_norm", False),
        )

    def _backbone(self, **inputs):
        """The backbone's outputs; without a cache unless it is asked for: no token follows a text that is classified,
        and where there is a cache, the layers run on padding as well."""
        given = {name: value for name, value in inputs.items() if value is not None}
        if getattr(self.config, "use_cache", False):
            given.setdefault("use_cache", False)
        return self.model(**given)

    def _logits(self, input_ids, attention_mask, **inputs) -> tuple[ModelOutput, torch.Tensor]:
        """The backbone's outputs, and logits (batch, labels) of texts or (batch, seq, labels) of tokens."""
        outputs = self._backbone(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states = outputs.last_hidden_state
        if self.pools:
            states = self.pool(states, input_ids, attention_mask, **inputs)
        if self.transform is not None:
            states = self.transform(states)
        if self.config.classifier_dropout:
            states = F.dropout(states, self.config.classifier_dropout, self.training)
        return outputs, self.score(states)

    def _output(self, outputs: ModelOutput, **fields) -> ModelOutput:
        return copy_fields(self.output_classes[self.task], outputs, **fields)


class SequenceClassificationHead(TaskHead):
    """One label or number for a whole text (classification, regression, reward models)."""

    task = "sequence"

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values=None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput | TokenClassifierOutput:
        """
        Returns logits (batch, labels), or (batch, seq, labels) of tokens.

        labels: of texts, (batch,) int64 classes or floats, or (batch, labels) floats; of tokens, (batch, seq) int64,
        -100 where there is none.
        """
        outputs, logits = self._logits(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: past_key_values, **kwargs},
        )
        loss = None
        if labels is not None:
            problem = self.config.problem_type if self.pools else "single_label_classification"
            loss = classification_loss(logits, labels, problem, num_items_in_batch)
        return self._output(outputs, loss=loss, logits=logits)


class TokenClassificationHead(SequenceClassificationHead):
    """A label for each token."""

    task = "token"
    pools = False


class QuestionAnsweringHead(TaskHead):
    """Where in a text an answer starts and ends."""

    task = "question"
    num_outputs = 2
    pools = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """start_positions, end_positions (batch,) int64. Returns start and end logits (batch, seq)."""
        outputs, logits = self._logits(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_logits, end_logits = (part.contiguous() for part in logits.unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start_logits, end_logits, start_positions, end_positions)
        return self._output(outputs, loss=loss, start_logits=start_logits, end_logits=end_logits)


class MultipleChoiceHead(TaskHead):
    """Which of several texts is the right one."""

    task = "choice"
    num_outputs = 1

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """input_ids (batch, choices, seq) int64, labels (batch,) int64. Returns logits (batch, choices)."""
        texts = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        flat = [None if text is None else text.flatten(0, 1) for text in texts]
        types, positions, embeds = flat[2:]
        outputs, logits = self._logits(
            *flat[:2], token_type_ids=types, position_ids=positions, inputs_embeds=embeds, **kwargs
        )
        logits = logits.view(-1, (input_ids if input_ids is not None else inputs_embeds).shape[1])
        loss = None
        if labels is not None:
            loss = logits_cross_entropy(logits, labels, num_items_in_batch=num_items_in_batch)
        return self._output(outputs, loss=loss, logits=logits)


def copy_fields(output_class: type, outputs, **fields):
    """An output of `output_class` with `fields`, and whatever else of its fields a backbone's `outputs` have."""
    known = output_class.__dataclass_fields__  # torch's compiler cannot look at `dataclasses.fields` of a class
    copied = {name: value for name, value in outputs.items() if name in known and name not in fields}
    return output_class(**fields, **copied)


def kept_states(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """
    Of hidden_states (batch, seq, hidden), those at the positions that `logits_to_keep` names, as in transformers: a
    number of last positions; positions (positions,) or (batch, positions) int64; or a mask (batch, seq) bool, which
    flattens the states to (chosen, hidden).
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim < 2:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)


def last_chosen(hidden_states: torch.Tensor, chosen: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """The state `offset` places behind each row's last chosen token; chosen: (batch, seq), nonzero at those."""
    batch, length = hidden_states.shape[:2]
    index = torch.arange(length, device=hidden_states.device)
    last = (index * chosen.to(hidden_states.device).int()).argmax(-1)
    return hidden_states[torch.arange(batch, device=hidden_states.device), (last + offset).clamp(max=length - 1)]


def last_token(
    hidden_states: torch.Tensor,
    input_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    pad_token_id,
    offset: int = 0,
) -> torch.Tensor:
    """The state of each row's last real token (or `offset` places behind it): by the mask, else by `pad_token_id`,
    else the last of the row."""
    batch, length = hidden_states.shape[:2]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        real = attention_mask[:, -length:]
    elif input_ids is not None and pad_token_id is not None:
        real = input_ids != pad_token_id
    elif batch > 1 and input_ids is not None and pad_token_id is None:
        raise ValueError(
            "Cannot tell where texts of a batch end: pass an `attention_mask` or set `pad_token_id` in the config."
        )
    else:
        return hidden_states[:, -1]
    return last_chosen(hidden_states, real, offset)


def mean_token(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mean state of each row's real tokens."""
    if attention_mask is None:
        return hidden_states.mean(1)
    weight = attention_mask.to(hidden_states)[..., None]
    return (hidden_states * weight).sum(1) / weight.sum(1).clamp(min=1)


def real_tokens(attention_mask, document_ids: torch.LongTensor | None) -> torch.Tensor | None:
    """(batch, seq) bool, False at padding, or `None` if nothing says where padding is."""
    if document_ids is not None:
        return document_ids >= 0
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return attention_mask.bool()
    return None
