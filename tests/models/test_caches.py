"""A cache goes by two names: `past_key_values`, and `cache` from transformers 5.24 on. Every forward takes either."""

import inspect

import pytest
import torch
from transformers import DynamicCache

from hf_llm import LLMDecoderForSequenceClassification, LLMDecoderModel, LLMEncoderDecoderModel
from hf_llm.models.compat import CACHE, CACHE_NAMES

from .tiny import MODELS, inputs_of, redraw, tiny_config


TAKERS = {
    "decoder": (MODELS["decoder"], LLMDecoderModel, LLMDecoderForSequenceClassification),
    "encoder_decoder": (MODELS["encoder_decoder"], LLMEncoderDecoderModel),
}
CASES = [(stack, cls) for stack, classes in TAKERS.items() for cls in classes]

pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")


@pytest.mark.parametrize(("stack", "cls"), CASES)
def test_either_name_is_taken(stack, cls):
    model, inputs = redraw(cls(tiny_config(stack))).eval(), inputs_of(stack)
    name = "input_ids" if stack == "decoder" else "decoder_input_ids"
    first, last = inputs[name][:, :-1], inputs[name][:, -1:]
    assert set(CACHE_NAMES) <= inspect.signature(model.forward).parameters.keys()
    outputs = []
    for given in CACHE_NAMES:
        with torch.no_grad():
            cache = model(**{**inputs, name: first}, use_cache=True)[CACHE]
            output = model(**{**inputs, name: last}, use_cache=True, **{given: cache})
        assert output[CACHE] is cache and cache.get_seq_length() == first.shape[1] + 1
        outputs.append(output[0])
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_a_cache_is_passed_once():
    model = MODELS["decoder"](tiny_config("decoder"))
    caches = {name: DynamicCache(config=model.config) for name in CACHE_NAMES}
    with pytest.raises(ValueError, match="Pass the cache once: as `past_key_values` or as `cache`"):
        model(**inputs_of("decoder"), **caches)


class _Foreign:
    """A cache of another library, which is no subclass of transformers'."""

    def __init__(self, config):
        self.cache = DynamicCache(config=config)

    def __getattr__(self, name):
        return getattr(self.cache, name)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_of_any_class_is_used(name):
    model, inputs = redraw(MODELS["decoder"](tiny_config("decoder"))).eval(), inputs_of("decoder")["input_ids"]
    cache = _Foreign(model.config)
    with torch.no_grad():
        model(inputs[:, :-1], **{name: cache})
        output = model(inputs[:, -1:], **{name: cache})
        torch.testing.assert_close(output.logits, model(inputs).logits[:, -1:], rtol=0, atol=1e-5)
        with pytest.raises(AttributeError, match="get_seq_length"):
            model(inputs, **{name: ((torch.zeros(2, 2, 3, 8),) * 2,) * 2})


def test_gradient_checkpointing_refuses_a_cache_that_holds_tokens():
    """It would leave them out in silence."""
    model = MODELS["decoder"](tiny_config("decoder"))
    cache = model(**inputs_of("decoder"), use_cache=True)[CACHE]
    model.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="Gradient checkpointing cannot train behind a cache"):
        model(**inputs_of("decoder"), **{CACHE: cache})


def test_a_layer_that_is_computed_again_appends_its_keys_once():
    """Gradient checkpointing in training leaves a cache as it is, whatever transformers calls it."""
    model = MODELS["decoder"](tiny_config("decoder")).train()
    model.gradient_checkpointing_enable()
    cache = DynamicCache(config=model.config)
    model(**inputs_of("decoder"), past_key_values=cache, labels=inputs_of("decoder")["input_ids"]).loss.backward()
    assert cache.get_seq_length() == 0
