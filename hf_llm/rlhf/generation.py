"""Sampling of completions where TRL's way does not do: encoder-decoders, and continuous batching beside training."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from transformers import GenerationConfig, PreTrainedModel

from .trl_internals import pad


@contextlib.contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Put aside what a model's own generation settings would add (beams, forced tokens, penalties, ...): completions
    must come from the distribution whose probabilities PPO compares."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    records_routing = getattr(model.config, "output_router_logits", False)
    if records_routing:  # which stock models cannot while they generate
        model.config.output_router_logits = False
    try:
        yield
    finally:
        model.generation_config = own
        if records_routing:
            model.config.output_router_logits = True


def generate_targets(
    model: PreTrainedModel, prompt_ids: list[list[int]], generation_config: GenerationConfig
) -> list[list[int]]:
    """Sample from an encoder-decoder; each completion goes on to its first end token, that included."""
    prompts = [torch.tensor(ids) for ids in prompt_ids]
    sequences = model.generate(
        input_ids=pad(prompts, padding_value=generation_config.pad_token_id).to(model.device),
        attention_mask=pad([torch.ones_like(p) for p in prompts], padding_value=0).to(model.device),
        generation_config=generation_config,
    )
    return [
        cut_at_end(ids, generation_config.eos_token_id) for ids in sequences[:, 1:].tolist()
    ]  # a start token first


def cut_at_end(ids: list[int], eos_token_ids: list[int]) -> list[int]:
    """Token ids up to the first end token, that included."""
    end = next((i for i, token in enumerate(ids) if token in eos_token_ids), len(ids) - 1)
    return ids[: end + 1]


def generate_continuously(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    generation_config: GenerationConfig,
    continuous_batching_config,
    dtype: torch.dtype | None = None,
) -> list[list[int]]:
    """Sample from a decoder by transformers' continuous batching.

    dtype: of a copy that generates in the model's place. (TRL casts the model itself, and with it for good the weights
    that are trained.)
    """
    original, was_training = model, model.training
    if dtype is not None:
        model = copy.deepcopy(model).to(dtype)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        vars(base).pop("forward", None)  # the extended forward pass belongs to the original
    outputs = model.generate_batch(
        prompt_ids,
        generation_config=generation_config,
        continuous_batching_config=continuous_batching_config,
        progress_bar=False,
    )
    original.train(was_training)
    failed = [output.error for output in outputs.values() if output.error is not None]
    if failed or len(outputs) != len(prompt_ids):
        raise RuntimeError(
            f"continuous batching completed {len(outputs) - len(failed)} of {len(prompt_ids)} prompts: {failed[:1]}"
        )
    return [cut_at_end(output.generated_tokens, generation_config.eos_token_id) for output in outputs.values()]
