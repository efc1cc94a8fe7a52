"""Heads take their backbone's arguments, by place and by name, and show them."""

import inspect

import pytest
import torch

from hf_llm import LLMDecoderModel, LLMEncoderDecoderModel, LLMEncoderModel

from .tiny import STACKS, inputs_of, tiny_model


BACKBONES = {"decoder": LLMDecoderModel, "encoder": LLMEncoderModel, "encoder_decoder": LLMEncoderDecoderModel}


@pytest.mark.parametrize("stack", STACKS)
def test_a_head_shows_the_arguments_of_its_backbone(stack):
    """Before its own: Trainer, `generate` and exporters look for names in the signature."""
    model = tiny_model(stack)
    theirs, own = (inspect.signature(forward).parameters for forward in (BACKBONES[stack].forward, model.forward))
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    by_place = [name for name, parameter in theirs.items() if name != "self" and parameter.kind not in kinds]
    assert list(own)[: len(by_place)] == by_place
    assert {"labels", "skip_logits", "output_router_logits"} <= own.keys() and theirs.keys() - own.keys() <= {
        "self",
        "kwargs",
    }


@pytest.mark.parametrize("stack", STACKS)
def test_arguments_are_passed_by_place_too(stack):
    model, inputs = tiny_model(stack), inputs_of(stack)
    mask = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        expected = model(**inputs, attention_mask=mask).logits
        logits = model(inputs.pop("input_ids"), mask, *inputs.values()).logits
    assert logits.equal(expected)
    with pytest.raises(TypeError, match="input_ids"):
        model(mask, input_ids=mask)
