"""The presets: their sizes against native classes and papers, and what they mean against the native configurations."""

import re

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from hf_llm import LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig
from hf_llm.interop import convert
from hf_llm.interop.families import FAMILIES
from hf_llm.interop.meaning import architecture
from hf_llm.presets import load_preset, preset_config, preset_names

from .natives import NATIVES


HEADS = {
    LLMDecoderConfig: AutoModelForCausalLM,
    LLMEncoderConfig: AutoModelForMaskedLM,
    LLMEncoderDecoderConfig: AutoModelForSeq2SeqLM,
}
PAPERS = [name for name in preset_names() if load_preset(name).published]
OWN = [name for name in preset_names() if load_preset(name).source.startswith("The default ")]
SIZES = set(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings sliding_window layer_types".split()
)
# Papers whose figure is no rounding of what their own table gives: how far off it is.
INEXACT = {
    "gpt3-medium": 0.02,  # "350M"
    "transformer-2017-base": 0.031,  # 65M, with "about 37000 tokens"
    "transformer-2017-big": 0.006,  # 213M
}

# A checkpoint's tensors decide what is tied (see the counts); task heads belong to no half.
NO_MEANING = {f"{half}tie_word_embeddings" for half in ("", "encoder.", "decoder.")} | {"encoder.classifier_bias"}


def count(config, auto_class, untied: bool = False) -> int:
    """Parameters of a model, on the meta device. untied: give the head its own weight, whatever the configuration
    says (as loading a checkpoint of T5 1.1 does, for it has one)."""
    with torch.device("meta"):
        model = auto_class.from_config(config)
        if untied:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        return model.num_parameters()


def rounding(figure: str) -> tuple[float, float]:
    """`"62.50B"` -> 62.5e9 and one unit of its last digit (figures are rounded, or cut off)."""
    digits, unit = re.fullmatch(r"([\d.]+)([MB])", figure).groups()
    scale = {"M": 1e6, "B": 1e9}[unit]
    return float(digits) * scale, scale / 10 ** len(digits.partition(".")[2])


@pytest.mark.parametrize("name", preset_names())
def test_parameters(name):
    config = preset_config(name)
    head = HEADS[type(config)]
    assert count(config, head) == load_preset(name).parameters
    if name in NATIVES:
        model_type, fields = NATIVES[name]
        native = transformers.CONFIG_MAPPING[model_type](**fields)
        assert count(native, head, untied=model_type == "t5" and not config.tie_word_embeddings) == count(config, head)


@pytest.mark.parametrize("name", PAPERS)
def test_published_figure(name):
    preset = load_preset(name)
    figure, unit = rounding(preset.published)
    assert abs(preset.parameters - figure) <= (INEXACT[name] * figure if name in INEXACT else unit)


@pytest.mark.parametrize("name", [n for n in NATIVES if NATIVES[n][0] in FAMILIES])
def test_same_architecture_as_the_native_configuration(name):
    model_type, fields = NATIVES[name]
    family = FAMILIES[model_type]
    imported = convert.to_our_config(family, transformers.CONFIG_MAPPING[model_type](**fields))
    meant, wanted = architecture(preset_config(name)), architecture(imported)
    left = {*NO_MEANING, *family.undecided}
    compared = [name for name in {*meant, *wanted} if name not in left]
    assert {n: meant.get(n) for n in compared} == {n: wanted.get(n) for n in compared}


@pytest.mark.parametrize("name", [n for n in NATIVES if NATIVES[n][0] in FAMILIES])
def test_exports_to_the_architecture_that_it_is_named_after(name):
    model_type, _ = NATIVES[name]
    convert.to_native_config(FAMILIES[model_type], preset_config(name))


def test_every_preset_is_checked_against_something():
    assert {*NATIVES, *PAPERS, *OWN} == set(preset_names())
    assert all(load_preset(name).source for name in preset_names())


@pytest.mark.parametrize("name", OWN)
def test_own_presets_are_the_defaults(name):
    """They set sizes, and windows, and nothing else."""
    config = load_preset(name).config
    for fields in (config["encoder"], config["decoder"]) if "encoder" in config else (config,):
        assert set(fields) - {"model_type"} <= SIZES


def test_from_preset():
    config = LLMDecoderConfig.from_preset("gpt2", vocab_size=50304)
    assert type(config) is LLMDecoderConfig
    assert (config.vocab_size, config.hidden_size, config.norm_type) == (50304, 768, "layernorm")
    assert LLMEncoderConfig.from_preset("bert-base").type_vocab_size == 2

    config = LLMEncoderDecoderConfig.from_preset(
        "t5-small", decoder={"num_hidden_layers": 2}, decoder_start_token_id=3
    )
    assert (config.encoder.num_hidden_layers, config.decoder.num_hidden_layers) == (6, 2)
    assert (config.decoder.hidden_act, config.decoder_start_token_id) == ("relu", 3)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="'lama-3-8b'.*nearest: llama-3-8b"):
        LLMDecoderConfig.from_preset("lama-3-8b")
    with pytest.raises(ValueError, match="'bert-base' is one of LLMEncoderConfig, not of LLMDecoderConfig"):
        LLMDecoderConfig.from_preset("bert-base")
