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


def test_a_layer_that_is_computed_again_appends_its_keys_once():
    """Gradient checkpointing in training leaves a cache as it is, whatever transformers calls it."""
    model = MODELS["decoder"](tiny_config("decoder")).train()
    model.gradient_checkpointing_enable()
    cache = DynamicCache(config=model.config)
    model(**inputs_of("decoder"), past_key_values=cache, labels=inputs_of("decoder")["input_ids"]).loss.backward()
    assert cache.get_seq_length() == 0
