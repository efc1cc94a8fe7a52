"""`device_map` on import: as in `from_pretrained`, with the names of our modules."""

import pytest
import torch

import hf_llm
from hf_llm.interop import InteropError

from . import parity
from .cases_llama_like import SMALL


PARTS = ("model.embed_tokens", "model.layers", "model.norm", "lm_head")


@pytest.fixture(scope="module")
def native():
    return parity.native_model("llama", **SMALL)


@pytest.fixture(scope="module")
def folder(native, tmp_path_factory):
    path = tmp_path_factory.mktemp("native")
    native.save_pretrained(path)
    return path


def devices(model) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, torch.device("cpu")])
def test_one_device(native, folder, device_map):
    ours = hf_llm.from_native(folder, device_map=device_map)
    assert {torch.device(device) for device in ours.hf_device_map.values()} == {torch.device("cpu")}
    parity.assert_same_logits(native, ours)


def test_layers_on_disk(native, folder, tmp_path):
    device_map = dict.fromkeys(PARTS, "cpu") | {"model.layers": "disk"}
    ours = hf_llm.from_native(folder, device_map=device_map, offload_folder=tmp_path / "offloaded")
    assert ours.hf_device_map == device_map
    assert devices(ours.model.layers) == {"meta"} and devices(ours.lm_head) == {"cpu"}
    parity.assert_same_logits(native, ours)
    ours.save_pretrained(tmp_path / "saved")
    parity.assert_same_logits(native, hf_llm.LLMDecoderForCausalLM.from_pretrained(tmp_path / "saved"))
    with pytest.raises(InteropError, match="offloaded"):
        hf_llm.to_native(ours)


def test_auto_offloads_what_memory_does_not_hold(native, folder, tmp_path):
    limits = {"max_memory": {"cpu": 20_000}, "offload_folder": tmp_path / "offloaded"}
    ours = hf_llm.from_native(folder, device_map="auto", **limits)
    assert "meta" in devices(ours)
    parity.assert_same_logits(native, ours)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        (dict.fromkeys(PARTS, "cpu") | {"model.layers": "disk"}, "by `offload_folder`"),
        ({"model.layers": "cpu"}, "does not give any device for .*lm_head.weight"),
        ("nowhere", "needs to be a device name"),
    ],
)
def test_maps_that_cannot_be_honoured_are_refused(folder, device_map, message):
    with pytest.raises(ValueError, match=message):
        hf_llm.from_native(folder, device_map=device_map)
