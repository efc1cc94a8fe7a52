"""A family from outside: a row in `FAMILIES`, for a native architecture that a user has registered."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf_llm
import hf_llm_cli as cli
from hf_llm.interop import FAMILIES, InteropError
from hf_llm.interop.family import renamed
from hf_llm.interop.parts import BIASES, HEAD_DIM, llama_like, rope

from .cases_llama_like import SMALL
from .parity import redraw


class HouseConfig(LlamaConfig):
    model_type = "house"
    attribute_map = {"intermediate_size": "inner_size"}


class HouseForCausalLM(LlamaForCausalLM):
    config_class = HouseConfig


@pytest.fixture
def house(monkeypatch):
    """A model of the user's architecture: Llama with one field of another name."""
    monkeypatch.setattr(transformers.CONFIG_MAPPING, "_extra_content", {})
    monkeypatch.setattr(AutoModelForCausalLM._model_mapping, "_extra_content", {})
    AutoConfig.register("house", HouseConfig)
    AutoModelForCausalLM.register(HouseConfig, HouseForCausalLM)
    fields = (*renamed(intermediate_size="inner_size"), *BIASES, HEAD_DIM, rope())
    FAMILIES["house"] = llama_like("house", *fields, heads={"ForCausalLM": {}})
    model = HouseForCausalLM(HouseConfig(**SMALL)).eval()
    redraw(model)
    yield model
    del FAMILIES["house"]


@torch.no_grad()
def test_a_user_s_family_is_imported_and_exported(house, tmp_path):
    house.save_pretrained(tmp_path / "native")
    cli.main(["import", str(tmp_path / "native"), str(tmp_path / "ours")])
    ours = hf_llm.LLMDecoderForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(ours(ids).logits, house(ids).logits)
    assert type(hf_llm.to_native(ours)) is HouseForCausalLM  # what it was imported from
    for family, model_class in (("house", HouseForCausalLM), ("llama", LlamaForCausalLM)):
        cli.main(["export", str(tmp_path / "ours"), str(tmp_path / family), "--as", family])
        back = model_class.from_pretrained(tmp_path / family)
        assert all(torch.equal(back.state_dict()[name], weight) for name, weight in house.state_dict().items())


def test_unknown_families_are_named_and_known_ones_kept(house):
    with pytest.raises(InteropError, match="'hose' is not known. Known, nearest first: house, "):
        hf_llm.to_native(hf_llm.from_native(house), "hose")
    with pytest.raises(ValueError, match="`model_type='llama'` is hf_llm's own"):
        FAMILIES["llama"] = FAMILIES["house"]
