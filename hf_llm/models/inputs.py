"""What is passed to a model: signatures, and checks whose messages name the argument, its value and what is legal.

Shapes are looked at always; values only where that makes no accelerator wait.
"""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import nn

from .operators import values_are_known


class IdEmbedding(nn.Embedding):
    """An embedding that says which id it has no row for. (On a GPU, torch stops with an assertion of its own.)

    argument: what the ids are called where they are passed; field: the configuration's field that has their number;
    offset: added to the ids.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, argument: str, field: str, offset: int = 0):
        super().__init__(num_embeddings, embedding_dim)
        self.argument, self.field, self.offset = argument, field, offset

    def forward(self, ids: torch.LongTensor) -> torch.Tensor:
        try:
            return super().forward(ids + self.offset if self.offset else ids)
        except IndexError as error:
            size = self.num_embeddings - self.offset
            wrong = ids[(ids < -self.offset) | (ids >= size)]
            raise ValueError(
                f"`{self.argument}` has {int(wrong[0])}, but must be from 0 to {size - 1} (`{self.field}={size}`)."
            ) from error


def takes_inputs_of(backbone: type[nn.Module]) -> Callable:
    """A decorator of a head's `forward`, which receives the backbone's arguments as `**inputs`: they may be passed by
    place, and stand in the signature, before the head's own. (Trainer, `generate` and exporters read signatures.)"""
    taken = list(inspect.signature(backbone.forward).parameters.values())[1:-1]

    def decorate(forward: Callable) -> Callable:
        this, *own, rest = inspect.signature(forward).parameters.values()
        parameters = sorted((*taken, *own), key=lambda parameter: parameter.kind)  # those by name alone come last
        names = [parameter.name for parameter in parameters]

        @functools.wraps(forward)
        def wrapper(self, *args, **kwargs):
            return forward(self, **dict(zip(names, args)), **kwargs)

        wrapper.__signature__ = inspect.Signature([this, *parameters, rest.replace(name="kwargs")])
        return wrapper

    return decorate


def check_tokens(input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None, width: int) -> torch.Tensor:
    """The one of input_ids (batch, seq) and inputs_embeds (batch, seq, width) that is passed."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
    if input_ids is not None and input_ids.ndim != 2:
        raise ValueError(f"`input_ids` has shape {tuple(input_ids.shape)}, but must be (batch, sequence).")
    if inputs_embeds is not None and (inputs_embeds.ndim != 3 or inputs_embeds.shape[-1] != width):
        raise ValueError(
            f"`inputs_embeds` has shape {tuple(inputs_embeds.shape)}, but must be (batch, sequence, {width})."
        )
    return input_ids if inputs_embeds is None else inputs_embeds


def check_aligned(
    tokens: torch.Tensor, attention_mask, position_ids: torch.LongTensor | None, past: int | torch.Tensor
) -> None:
    """Whether a 2-D mask (batch, past + seq) and positions (batch or 1, seq) fit tokens (batch, seq, ...)."""
    batch, length = tokens.shape[:2]
    if position_ids is not None and position_ids.shape not in ((batch, length), (1, length)):
        raise ValueError(
            f"`position_ids` has shape {tuple(position_ids.shape)}, but must have one for each token: "
            f"{(batch, length)}."
        )
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2 or isinstance(past, torch.Tensor):
        return
    if attention_mask.shape != (batch, past + length):
        raise ValueError(
            f"`attention_mask` has shape {tuple(attention_mask.shape)}, but must have one entry for each token, those "
            f"in the cache included: {(batch, past + length)}."
        )


def check_length(length: int, past: int | torch.Tensor, positions: int) -> None:
    """Whether there are learned positions for `length` tokens behind `past` others."""
    if isinstance(past, int) and past + length > positions:
        raise ValueError(
            f"The input has {past + length} tokens, but learned positions end at "
            f"`max_position_embeddings={positions}`: shorten the input."
        )


def check_token_types(token_type_ids: torch.LongTensor, tokens: torch.Tensor, types: int) -> None:
    """Whether there is a token type for each token (batch, seq, ...), and other types than 0 only in a model that has
    them. Values are looked at on a CPU only."""
    if token_type_ids.shape != tokens.shape[:2]:
        raise ValueError(
            f"`token_type_ids` has shape {tuple(token_type_ids.shape)}, but must have one for each token: "
            f"{tuple(tokens.shape[:2])}."
        )
    if types or token_type_ids.device.type != "cpu" or not values_are_known():
        return
    if token_type_ids.any():
        raise ValueError("`token_type_ids` were passed, but `type_vocab_size=0`: the model has no token types.")


def check_documents(document_ids: torch.LongTensor) -> None:
    """Whether document ids (batch, tokens) are integers that never fall along a row, but for -1 at padding. Values are
    looked at on a CPU only."""
    if document_ids.is_floating_point():
        raise ValueError(f"`document_ids` has the dtype {document_ids.dtype}, but must hold integers.")
    if document_ids.device.type != "cpu" or not values_are_known():
        return
    falls = (document_ids >= 0) & (document_ids < document_ids.cummax(-1).values)
    if falls.any():
        row = int(falls.any(-1).nonzero()[0])
        raise ValueError(
            f"`document_ids` of row {row} fall to {int(document_ids[row][falls[row]][0])}, but must number the "
            "documents in their order, 0, 1, ..., with -1 for padding: the tokens of a document stand together."
        )


def check_source(config, states: torch.Tensor, mask, batch: int) -> None:
    """Whether a decoder reads an encoder's states (batch, source, width), and a 2-D mask (batch, source) fits them."""
    if not config.add_cross_attention:
        raise ValueError("`encoder_hidden_states` were passed, but `add_cross_attention=False`: nothing reads them.")
    width = config.cross_attention_hidden_size or config.hidden_size
    if states.ndim != 3 or (states.shape[0], states.shape[-1]) != (batch, width):
        raise ValueError(
            f"`encoder_hidden_states` has shape {tuple(states.shape)}, but must be ({batch}, source, {width})."
        )
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape != states.shape[:2]:
        raise ValueError(
            f"The encoder's attention mask has shape {tuple(mask.shape)}, but must have one entry for each source "
            f"token: {tuple(states.shape[:2])}."
        )


def check_packed_source(is_packed: bool, source_document_ids: torch.LongTensor | None) -> None:
    """Whether documents are packed on both sides of cross-attention or on neither."""
    if is_packed and source_document_ids is None:
        raise ValueError("Documents are packed in the decoder: pass `encoder_document_ids` as well.")
    if not is_packed and source_document_ids is not None and values_are_known():
        if bool(source_document_ids.max() > 0):
            raise ValueError("Documents are packed in the encoder: pass the decoder's `document_ids` as well.")


def check_labels(labels: torch.LongTensor | None, tokens: torch.Tensor) -> None:
    """Whether labels (batch, seq) have one for each of the tokens or states (batch, seq, ...)."""
    if labels is not None and labels.shape != tokens.shape[:2]:
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)}, but must have one for each token: {tuple(tokens.shape[:2])}."
        )


def check_classes(labels: torch.LongTensor, classes: int, ignore_index: int) -> None:
    """Whether there is a logit for each label. Looked at on a CPU only."""
    if labels.device.type != "cpu" or not values_are_known():
        return
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ValueError(
            f"`labels` has {int(wrong[0])}, but must be from 0 to {classes - 1}, or {ignore_index} for no target."
        )
