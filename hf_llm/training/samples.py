"""What a model makes of a few prompts: generated (decoder), filled in (encoder), restored (encoder-decoder)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .stacks import stack_of


@dataclass(frozen=True)
class Sample:
    """`prompt` as the model saw it, `output` as it answered; both plain text."""

    prompt: str
    output: str


@torch.no_grad()
def draw_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
) -> list[Sample]:
    """One sample per prompt; the model comes back in the mode (training or evaluation) that it was in.

    Args:
        model: any stack, with its language-modelling head.
        prompts: a beginning (decoder), text with mask tokens written `[MASK]` (encoder), text whose gaps are written
            `<extra_id_0>`, `<extra_id_1>`, ... (encoder-decoder).
        temperature: 0 decodes greedily; ignored by encoders, which fill in the likeliest token.
        seed: of the draws; torch's global generator is reseeded.
    """
    torch.manual_seed(seed)
    was_training = model.training
    model.eval()
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
    draw = _DRAW[stack_of(model.config).name]
    try:
        return [draw(model, tokenizer, prompt, {"max_new_tokens": max_new_tokens, **sampling}) for prompt in prompts]
    finally:
        model.train(was_training)


def _generate(model, tokenizer, prompt: str, settings: dict) -> Sample:
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    output = model.generate(**ids, **settings, use_cache=True, pad_token_id=tokenizer.pad_token_id)
    return Sample(prompt, tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def _fill(model, tokenizer, prompt: str, settings: dict) -> Sample:
    prompt = prompt.replace("[MASK]", tokenizer.mask_token)
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    masked = ids["input_ids"][0] == tokenizer.mask_token_id
    best = model(**ids).logits[0, masked].argmax(-1)
    filled = ids["input_ids"][0].masked_scatter(masked, best)
    return Sample(prompt, tokenizer.decode(filled, skip_special_tokens=True))


def _restore(model, tokenizer, prompt: str, settings: dict) -> Sample:
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    output = model.generate(**ids, **settings, use_cache=True)
    special = [t for t in (tokenizer.pad_token, tokenizer.eos_token) if t]
    text = tokenizer.decode(output[0, 1:], skip_special_tokens=False)  # without the token that the decoder starts from
    for token in special:
        text = text.replace(token, "")
    return Sample(prompt, text.strip())


_DRAW: dict[str, Callable[..., Sample]] = {"decoder": _generate, "encoder": _fill, "encoder-decoder": _restore}
