"""Every field of every native configuration is accounted for: nothing is dropped because a table forgot it."""

import dataclasses

import pytest
import transformers
from transformers import PreTrainedConfig

from hf_llm.interop.configurations import CARRIED, CONFIGS, TOKENS
from hf_llm.interop.family import Group

from . import parity


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
