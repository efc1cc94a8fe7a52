"""A saved checkpoint names the version of hf_llm that wrote it, and every head, whichever way it came to be saved."""

import json

import pytest
from models.tiny import STACKS, tiny_config, tiny_model
from peft import LoraConfig, get_peft_model

import hf_llm
from hf_llm import __version__
from hf_llm.models.common import auto_map


def assert_named(folder, stack: str) -> None:
    written = json.loads((folder / "config.json").read_text())
    assert written["hf_llm_version"] == __version__ and written["auto_map"] == auto_map(stack)


@pytest.mark.parametrize("stack", STACKS)
def test_every_class_names_the_version(stack, tmp_path):
    for target in set(auto_map(stack).values()):
        name = target.split(".")[1]
        made = getattr(hf_llm, name)
        (tiny_config(stack) if name.endswith("Config") else made(tiny_config(stack))).save_pretrained(tmp_path / name)
        assert_named(tmp_path / name, stack)


@pytest.mark.parametrize("stack", STACKS)
def test_a_merged_adapter_names_the_version(stack, tmp_path):
    adapted = get_peft_model(tiny_model(stack), LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert_named(tmp_path, stack)


@pytest.mark.parametrize("stack", STACKS)
def test_what_an_earlier_version_wrote_and_this_one_saves_names_this_one(stack, tmp_path):
    model = tiny_model(stack)
    model.save_pretrained(tmp_path)
    earlier = json.loads((tmp_path / "config.json").read_text()) | {"hf_llm_version": "0.0.9"}
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    reopened = type(model).from_pretrained(tmp_path)
    assert reopened.config.hf_llm_version == "0.0.9"
    reopened.save_pretrained(tmp_path / "again")
    assert_named(tmp_path / "again", stack)
