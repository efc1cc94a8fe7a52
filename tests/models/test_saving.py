"""Saving and opening: bit-exact, in every dtype and size of shard, with code that travels along."""

import copy
import dataclasses
import json
import pickle
import re

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

import hf_llm
from hf_llm import (
    LLMDecoderConfig,
    LLMEncoderConfig,
    LLMEncoderDecoderConfig,
    LLMEncoderDecoderForConditionalGeneration,
)
from hf_llm.models.common import auto_map
from hf_llm.models.positions import RotaryEmbedding

from .tiny import EXPERTS, SIZES, STACKS, inputs_of, logits_of, redraw, tiny_config, tiny_model, tokens


EVERYTHING = {  # parameters of every kind
    **EXPERTS, "mlp_layer_types": "DE", "shared_expert_intermediate_size": 16, "shared_expert_gate": True,
    "router_bias": True, "expert_bias": True, "attention_bias": True, "mlp_bias": True, "attention_sinks": True,
    "norm_type": "layernorm", "norm_bias": True, "embedding_norm": True, "lm_head_bias": True,
    "layer_types": "SL", "sliding_window": 3,
}  # fmt: skip


def rotaries(model):
    return [module for module in model.modules() if isinstance(module, RotaryEmbedding)]


def assert_same(model, reopened, inputs) -> None:
    """The same class, tensors and logits, to the bit."""
    assert type(reopened) is type(model)
    tensors, reopened_tensors = model.state_dict(), reopened.state_dict()
    assert tensors.keys() == reopened_tensors.keys()
    for name, tensor in tensors.items():
        assert reopened_tensors[name].dtype == tensor.dtype and reopened_tensors[name].equal(tensor), name
    for parameter in reopened.parameters():  # where a tensor lies in memory decides how its products are rounded
        parameter.data = parameter.data.clone()
    assert logits_of(reopened, inputs).equal(logits_of(model, inputs))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("fields", ({}, EVERYTHING), ids=("default", "everything"))
def test_a_round_trip_is_bit_exact(stack, dtype, fields, tmp_path):
    """In one file and in many, opened in the dtype it was saved in."""
    model = tiny_model(stack, **fields).to(dtype)
    inputs = inputs_of(stack)
    for folder, size in (("whole", "1GB"), ("shards", "10KB")):
        model.save_pretrained(tmp_path / folder, max_shard_size=size)
        files = list((tmp_path / folder).glob("*.safetensors"))
        assert (len(files) == 1) == (folder == "whole")
        reopened = type(model).from_pretrained(tmp_path / folder)
        assert reopened.dtype == dtype
        assert_same(model, reopened, inputs)


@pytest.mark.parametrize("stack", STACKS)
def test_rotary_frequencies_stay_float32(stack, tmp_path):
    """Cast, moved, saved and opened in bfloat16, a model rotates as it did before."""
    model = tiny_model(stack, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0})
    frequencies = [module.inv_freq.clone() for module in rotaries(model)]
    assert frequencies
    model.to(torch.bfloat16).half().bfloat16()
    model.save_pretrained(tmp_path)
    for changed in (model, type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)):
        assert changed.dtype == torch.bfloat16
        for module, expected in zip(rotaries(changed), frequencies):
            for buffer in (module.inv_freq, module.original_inv_freq):
                assert buffer.dtype == torch.float32 and buffer.equal(expected)


@pytest.mark.parametrize("stack", STACKS)
def test_configurations_come_back(stack, tmp_path):
    """Equal after a round trip, and what is written says which code and version opens it."""
    config = tiny_config(stack, **EVERYTHING)
    config.save_pretrained(tmp_path)
    reopened = AutoConfig.from_pretrained(tmp_path)
    assert type(reopened) is type(config)
    ignored = ("auto_map", "hf_llm_version", "transformers_version", "_name_or_path")
    fields, reopened_fields = (
        {name: value for name, value in c.to_dict().items() if name not in ignored} for c in (config, reopened)
    )
    assert fields == reopened_fields
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auto_map"] == auto_map(stack) and written["hf_llm_version"] == hf_llm.__version__


@pytest.mark.parametrize("stack", STACKS)
def test_a_model_can_be_copied_and_sent_to_another_process(stack):
    model = tiny_model(stack, **EVERYTHING)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(model, again, inputs_of(stack))


def test_any_head_opens_a_checkpoint(tmp_path):
    """A body in a head of another kind: its weights are there, and the new layer is initialised."""
    model = tiny_model("decoder", classifier_bias=True)
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert classifier.model.layers[0].mlp.up_proj.weight.equal(model.model.layers[0].mlp.up_proj.weight)
    assert classifier.score.weight.shape == (5, 32)
    assert 0.01 < classifier.score.weight.std() < 0.03 and not classifier.score.bias.any()
    body = AutoModel.from_pretrained(tmp_path)
    assert body.norm.weight.equal(model.model.norm.weight)
    body.save_pretrained(tmp_path / "body")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "body")
    assert_same(model, again, inputs_of("decoder"))


# -- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ("decoder", "encoder"))
@pytest.mark.parametrize("tied", (True, False))
def test_tied_stays_tied_and_untied_untied(stack, tied, tmp_path):
    model = tiny_model(stack, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in safetensors.torch.load_file(tmp_path / "model.safetensors")) != tied
    reopened = type(model).from_pretrained(tmp_path)
    reopened.resize_token_embeddings(70)
    assert (reopened.lm_head.weight is reopened.model.embed_tokens.weight) == tied
    assert reopened.lm_head.weight.shape == (70, 32) and reopened.config.vocab_size == 70


@pytest.mark.parametrize("shared", (True, False))
@pytest.mark.parametrize("tied", (True, False))
def test_halves_share_embeddings_or_not_and_tie_the_head_or_not(shared, tied, tmp_path):
    config = LLMEncoderDecoderConfig(
        encoder=SIZES, decoder=SIZES, share_embeddings=shared, tie_word_embeddings=tied, decoder_start_token_id=1
    )
    model = redraw(LLMEncoderDecoderForConditionalGeneration(config)).eval()
    model.save_pretrained(tmp_path)
    written = safetensors.torch.load_file(tmp_path / "model.safetensors")
    names = [name for name in written if "embed_tokens" in name or "lm_head" in name]
    assert len(names) == 3 - shared - tied
    reopened = LLMEncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
    assert_same(model, reopened, inputs_of("encoder_decoder"))
    reopened.resize_token_embeddings(70)
    source, target = reopened.model.encoder.embed_tokens.weight, reopened.model.decoder.embed_tokens.weight
    assert (source is target) == shared and (reopened.lm_head.weight is target) == tied
    assert source.shape == target.shape == reopened.lm_head.weight.shape == (70, 32)
    assert reopened(**inputs_of("encoder_decoder")).logits.shape[-1] == 70
    assert {half.vocab_size for half in (reopened.config, reopened.config.encoder, reopened.config.decoder)} == {70}
    reopened.save_pretrained(tmp_path / "resized")
    resized = LLMEncoderDecoderForConditionalGeneration.from_pretrained(tmp_path / "resized")
    assert_same(reopened, resized, inputs_of("encoder_decoder"))


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
def test_layers_and_heads_may_wait_on_the_disk(stack, tmp_path):
    """`device_map="auto"` with little memory: the same logits, and the same loss from chunks of a head on the disk."""
    model = tiny_model(stack, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    labels = inputs_of(stack, seed=3).get("decoder_input_ids", inputs_of(stack, seed=3)["input_ids"])
    inputs = inputs_of(stack)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    offloaded = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": int(size * 0.7)}, offload_folder=tmp_path / "offload"
    )
    places = set(offloaded.hf_device_map.values())
    assert places == {"cpu", "disk"} and offloaded.hf_device_map["lm_head"] == "disk"
    with torch.no_grad():
        for skip in (False, True):
            actual = offloaded(**inputs, labels=labels, skip_logits=skip)
            expected = model(**inputs, labels=labels, skip_logits=skip)
            torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ("../x.safetensors", "{}/x.safetensors", r"..\x.safetensors"))
def test_an_index_of_shards_does_not_lead_out_of_its_folder(name, tmp_path):
    folder, name = tmp_path / "model", name.format(tmp_path)
    tiny_model("decoder").save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside its folder, which are not read: " + re.escape(name)):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("device_map", ("cpu", "auto"))
def test_device_maps(device_map, tmp_path):
    model = tiny_model("decoder", **EVERYTHING)
    model.save_pretrained(tmp_path)
    assert_same(model, type(model).from_pretrained(tmp_path, device_map=device_map), inputs_of("decoder"))


@pytest.mark.parametrize("stack", STACKS)
def test_a_model_on_the_meta_device_can_be_traced(stack):
    """Shapes of logits and loss, without memory for either weights or activations."""
    model = tiny_model(stack, layer_types="SL", sliding_window=3).to("meta")
    inputs = {name: value.to("meta") for name, value in inputs_of(stack).items()}
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    for train in (True, False):
        output = model.train(train)(**inputs, labels=labels)
        assert output.loss.shape == () and output.loss.device.type == "meta"
    assert output.logits.shape == (*labels.shape, 64)


def test_a_subclass_may_give_fields_other_names():
    class Renamed(hf_llm.LLMDecoderConfig):
        attribute_map = {"n_embd": "hidden_size"}

    config = Renamed(hidden_size=32, num_attention_heads=4)
    assert config.n_embd == config.hidden_size == 32
    config.n_embd = 64
    assert config.hidden_size == 64


@pytest.mark.parametrize("fields", [{}, {**EXPERTS, "mlp_layer_types": "D"}], ids=["no experts", "no sparse layer"])
def test_only_mixtures_have_router_losses(fields, tmp_path):
    """By a coefficient of 0, TRL knows that there are none. A checkpoint of an earlier version opens."""
    marks = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.01, "output_router_logits": False}
    for config_class in (LLMDecoderConfig, LLMEncoderConfig):
        dense, sparse = config_class(**{**SIZES, **fields, **marks}), config_class(**SIZES, num_experts=4)
        assert (dense.num_experts_per_tok, dense.router_aux_loss_coef) == (None, 0.0)
        assert {name: getattr(sparse, name) for name in marks} == marks
        for config in (dense, sparse):
            config.save_pretrained(tmp_path)
            assert config_class.from_pretrained(tmp_path).to_dict() == config.to_dict()
            assert copy.deepcopy(config) == dataclasses.replace(config) == config_class(**dataclasses.asdict(config))
            assert dataclasses.replace(config) == config
        assert dense != sparse and sparse != config_class(**SIZES, num_experts=4, num_experts_per_tok=1)


def test_router_logits_without_routers(monkeypatch):
    """A configuration refuses them; a forward pass, which transformers asks for whatever it could record, warns."""
    with pytest.raises(ValueError, match="output_router_logits=True.*no routers"):
        LLMDecoderConfig(**SIZES, output_router_logits=True)
    told = []
    monkeypatch.setattr("hf_llm.models.heads.logger.warning_once", told.append)
    assert "router_logits" not in tiny_model("decoder")(tokens(1, 4), output_router_logits=True)
    assert len(told) == 1 and "no routers" in told[0]
