"""What a model makes of a few prompts: generated (decoder), filled in (encoder), restored (encoder-decoder)."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .stacks import stack_of


@dataclass(frozen=True)
class Sample:
    """`prompt` as the model saw it, `output` as it answered; both plain text."""

    prompt: str
    output: str


def fenced(text: str) -> str:
    """A block of code in Markdown, with a fence that the text does not hold."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


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
    settings = {"max_new_tokens": max_new_tokens, "do_sample": bool(temperature)}
    settings |= {"temperature": temperature, "top_p": top_p} if temperature else {}
    try:
        return [_draw(model, tokenizer, prompt, settings) for prompt in prompts]
    finally:
        model.train(was_training)


def _draw(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, settings: dict) -> Sample:
    stack = stack_of(model.config).name
    if stack == "encoder":
        prompt = prompt.replace("[MASK]", tokenizer.mask_token)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    ids = inputs["input_ids"][0]
    if stack == "encoder":
        masked = ids == tokenizer.mask_token_id
        filled = ids.masked_scatter(masked, model(**inputs).logits[0, masked].argmax(-1))
        return Sample(prompt, tokenizer.decode(filled, skip_special_tokens=True))
    output = model.generate(**inputs, **settings, use_cache=True, pad_token_id=tokenizer.pad_token_id)[0]
    if stack == "decoder":
        return Sample(prompt, tokenizer.decode(output[len(ids) :], skip_special_tokens=True))
    text = tokenizer.decode(output[1:])  # without the token that the decoder starts from; gaps are special tokens
    for token in filter(None, (tokenizer.pad_token, tokenizer.eos_token)):
        text = text.replace(token, "")
    return Sample(prompt, text.strip())
