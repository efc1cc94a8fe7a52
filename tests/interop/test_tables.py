"""Every field of every native configuration is accounted for: nothing is dropped because a table forgot it."""

import dataclasses

import pytest
import transformers
from transformers import PreTrainedConfig

from hf_llm import LLMDecoderConfig
from hf_llm.interop import nearest_family
from hf_llm.interop.configurations import CARRIED, CONFIGS, TOKENS, to_our_config
from hf_llm.interop.family import Group

from . import parity
from .test_decoders import CASES as DECODERS
from .test_encoder_decoders import CASES as ENCODER_DECODERS
from .test_encoders import CASES as ENCODERS


COMMON = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {*TOKENS, *CARRIED}


def native_names(family) -> set[str]:
    """The native fields that a family's table speaks of."""
    names = {*family.requires, *family.ignores}
    for entry in family.fields:
        names.update(entry.native if isinstance(entry, Group) else (entry.native,))
    return names


@pytest.mark.parametrize("name", parity.FAMILIES)
def test_every_native_field_is_accounted_for(name):
    family, native = parity.FAMILIES[name], transformers.CONFIG_MAPPING[name]
    spoken_of = native_names(family) | COMMON
    spoken_of |= {native.attribute_map[field] for field in spoken_of if field in native.attribute_map}
    assert {field.name for field in dataclasses.fields(native)} - spoken_of == set()


@pytest.mark.parametrize("name", parity.FAMILIES)
def test_tables_name_fields_of_ours(name):
    family = parity.FAMILIES[name]
    known = {field.name for field in dataclasses.fields(CONFIGS[family.stack])}
    if family.stack == "encoder_decoder":
        for half in ("encoder", "decoder"):
            known |= {f"{half}.{field.name}" for field in dataclasses.fields(CONFIGS[half])}
    named = {*family.constants}
    for entry in family.fields:
        named.update(entry.ours)
    assert named - known == set()


@pytest.mark.parametrize("name", parity.FAMILIES)
def test_legacy_fields_are_no_longer_native_ones(name):
    """Those that transformers still has belong into `fields` or `requires`."""
    native = transformers.CONFIG_MAPPING[name]
    assert not {field.name for field in dataclasses.fields(native)} & {*parity.FAMILIES[name].legacy(native())}


@pytest.mark.parametrize("name", parity.FAMILIES)
def test_an_imported_model_is_exported_to_the_family_that_it_came_from(name):
    small = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}[name][0]
    native = transformers.CONFIG_MAPPING[name](**{key: value for key, value in small.items() if key != "attention"})
    ours = to_our_config(parity.FAMILIES[name], native)
    assert nearest_family(type(ours).from_dict(ours.to_dict())) == name


def test_a_model_that_its_family_cannot_express_any_more_is_exported_to_another():
    family = parity.FAMILIES["mistral"]
    ours = to_our_config(family, transformers.MistralConfig(**DECODERS["mistral"][0])).to_dict()
    biases = dict.fromkeys(("attention_bias", "attention_output_bias", "mlp_bias"), True)
    assert nearest_family(LLMDecoderConfig.from_dict(ours | biases)) == "llama"
