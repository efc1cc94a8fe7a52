"""The policy's forward pass in PPO: log-probabilities, entropies and values of given completions."""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from . import critic as critics
from .trl_internals import disable_dropout_in_model, selective_log_softmax, selective_log_softmax_and_entropy


_INPUTS = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids", "decoder_attention_mask")


@dataclass
class CompletionScores(ModelOutput):
    """Output of the policy and its critic.

    Attributes:
        log_probs: (batch, completion) float32, of each token given those before it.
        entropy: (batch, completion) float32, nats, without gradient; None without `with_entropy`.
        token_values: (batch, completion) float32, value of the state before each token; None without a critic.
        aux_loss: scalar, load-balancing loss of experts; None without `output_router_logits`.
    """

    log_probs: torch.Tensor = None
    entropy: torch.Tensor | None = None
    token_values: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


def score_completions_in_forward(model: PreTrainedModel) -> None:
    """Make `model(..., completion_ids=ids, temperature=t, with_entropy=False)` return [`CompletionScores`].

    The critic runs inside the forward pass, which DDP and autocast wrap. A decoder's completion is the end of its
    `input_ids`; an encoder-decoder's is `decoder_input_ids`, shifted by one. Log-probabilities come from the model's
    own logits, with their scales, caps, head transforms and adapters. Calls without `completion_ids` are unchanged.
    """
    plain = model.forward
    is_encoder_decoder = model.config.is_encoder_decoder
    parameters = inspect.signature(type(model).forward).parameters

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        self,
        *args,
        completion_ids: torch.LongTensor | None = None,
        temperature: float = 1.0,
        with_entropy: bool = False,
        **kwargs,
    ):
        if completion_ids is None:
            return plain(*args, **kwargs)
        inputs = {name: value for name, value in kwargs.items() if name in _INPUTS and value is not None}
        options = {"use_cache": False}
        if kwargs.get("output_router_logits"):
            options["output_router_logits"] = True
        length = completion_ids.shape[1]
        if "logits_to_keep" in parameters and not is_encoder_decoder:
            options["logits_to_keep"] = length + 1
        chosen = slice(None) if is_encoder_decoder else slice(-length - 1, -1)
        seen = []
        handle = self.get_decoder().register_forward_hook(lambda module, args, output: seen.append(output[0]))
        try:
            outputs = plain(**inputs, **options)
        finally:
            handle.remove()
        logits, entropy = outputs.logits[:, chosen].float(), None
        if with_entropy:
            log_probs, entropy = selective_log_softmax_and_entropy(
                logits, completion_ids, entropy_requires_grad=False, temperature=temperature
            )
        else:
            log_probs = selective_log_softmax(logits, completion_ids, temperature)
        critic = getattr(self, critics.NAME, None)
        return CompletionScores(
            log_probs=log_probs,
            entropy=entropy,
            token_values=None if critic is None else critic(seen[0], inputs)[:, chosen],
            aux_loss=getattr(outputs, "aux_loss", None),
        )

    model.forward = MethodType(forward, model)


def completion_inputs(
    batch: dict[str, torch.Tensor], start_token_id: int | None = None, with_position_ids: bool = True
) -> dict[str, torch.Tensor]:
    """A policy's inputs of prompts and completions.

    Args:
        batch: `prompt_ids`, `prompt_mask` (batch, prompt); `completion_ids`, `completion_mask` (batch, completion).
            Prompts are padded on the left for a decoder, on the right for an encoder-decoder.
        start_token_id: of an encoder-decoder; None for decoders.
        with_position_ids: of a decoder, counted from the first real token.
    """
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    if start_token_id is not None:
        start = torch.full_like(ids[:, :1], start_token_id)
        return {
            "input_ids": batch["prompt_ids"],
            "attention_mask": batch["prompt_mask"],
            "decoder_input_ids": torch.cat([start, ids[:, :-1]], 1),
            "decoder_attention_mask": torch.cat([torch.ones_like(start), mask[:, :-1]], 1),
            "completion_ids": ids,
        }
    attention_mask = torch.cat([batch["prompt_mask"], mask], 1)
    inputs = {
        "input_ids": torch.cat([batch["prompt_ids"], ids], 1),
        "attention_mask": attention_mask,
        "completion_ids": ids,
    }
    if with_position_ids:
        inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
    return inputs


def start_token_of(model: PreTrainedModel) -> int | None:
    """First token id of an encoder-decoder's targets; None for a decoder.

    Raises:
        ValueError: neither generation nor model configuration has one.
    """
    if not model.config.is_encoder_decoder:
        return None
    for name in ("decoder_start_token_id", "bos_token_id"):
        for source in (model.generation_config, model.config):
            if getattr(source, name, None) is not None:
                return getattr(source, name)
    raise ValueError(f"{type(model).__name__} says neither decoder_start_token_id nor bos_token_id: set one of them")


@contextlib.contextmanager
def without_critic(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The policy with its critic detached, for generating, saving and loading."""
    critic = model._modules.pop(critics.NAME, None)
    try:
        yield model
    finally:
        if critic is not None:
            model._modules[critics.NAME] = critic


class NoDropout:
    """Sets the dropout of a model to 0: of layers, and of rates in attributes of modules and configurations.

    `restored()` gives the rates back, so that a saved model keeps them.
    """

    def __init__(self, model: nn.Module):
        disable_dropout_in_model(model)
        modules = list(model.modules())
        configs = {id(m.config): m.config for m in modules if isinstance(m, PreTrainedModel)}
        self.rates = [
            (owner, name, rate)
            for owner in (*modules, *configs.values())
            for name, rate in vars(owner).items()
            if "drop" in name and isinstance(rate, float) and 0 < rate < 1
        ]
        self._scale(0.0)

    def _scale(self, factor: float) -> None:
        for owner, name, rate in self.rates:
            setattr(owner, name, factor * rate)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        self._scale(1.0)
        try:
            yield
        finally:
            self._scale(0.0)
