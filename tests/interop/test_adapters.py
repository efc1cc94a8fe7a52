"""PEFT adapters on either side of the same base: the same logits, and the same file where modules are one to one."""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import hf_llm
import hf_llm_cli as cli
from hf_llm.interop import InteropError
from hf_llm.interop.folders import move_adapter

from . import parity
from .test_decoders import CASES as DECODERS
from .test_encoder_decoders import CASES as ENCODER_DECODERS
from .test_encoders import CASES as ENCODERS


BASES = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}
LORA = {"r": 4, "lora_alpha": 8}
# family -> head, kind of adapter
ONE_TO_ONE = {
    "llama": ("ForCausalLM", LoraConfig(**LORA, target_modules=["q_proj", "v_proj", "down_proj"])),
    "llama-dora": ("ForCausalLM", LoraConfig(**LORA, target_modules="all-linear", use_dora=True, use_rslora=True)),
    "llama-patterns": (
        "ForCausalLM",
        LoraConfig(
            **LORA,
            target_modules=r".*\.[01]\..*(q|o)_proj",
            rank_pattern={r"layers\.1\.self_attn\.q_proj": 2},
            alpha_pattern={"o_proj": 3},
        ),
    ),
    "llama-ia3": (
        "ForCausalLM",
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "bert": ("ForMaskedLM", LoraConfig(**LORA, target_modules=["query", "value", "output.dense"])),
    "bert-classifier": (
        "ForSequenceClassification",
        LoraConfig(**LORA, task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=["classifier"]),
    ),
    "t5": ("ForConditionalGeneration", LoraConfig(**LORA, target_modules=["q", "v", "wo"])),
    "gpt2-output": ("ForCausalLM", LoraConfig(**LORA, target_modules=["c_fc"])),
}
SPLIT = {
    "gpt2": ("ForCausalLM", LoraConfig(**LORA, target_modules=["c_attn", "c_proj", "c_fc"])),
    "gpt2-dora": ("ForCausalLM", LoraConfig(**LORA, target_modules=["c_attn"], use_dora=True)),
    "gpt2-ia3": (
        "ForCausalLM",
        IA3Config(target_modules=["c_attn", "c_fc"], feedforward_modules=["c_fc"]),
    ),
    "phi3": ("ForCausalLM", LoraConfig(**LORA, target_modules=["qkv_proj", "gate_up_proj"])),
    "gpt_neox": ("ForCausalLM", LoraConfig(**LORA, target_modules=["query_key_value"])),
}


def native_of(name, head):
    family = name.split("-")[0]
    labels = {"num_labels": 3} if head == "ForSequenceClassification" else {}
    return parity.native_model(family, head, **BASES[family][0], **labels)


@torch.no_grad()
def adapt(model, config, folder):
    """Write an adapter with random weights for a model, as PEFT does. Returns the adapted model."""
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for p in adapted.parameters() if p.requires_grad):
        parameter.copy_(parameter.abs().clamp(min=0.1) + 0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture
def move(tmp_path):
    """Both sides of an adapter: move(name, head, config) -> folders of native and imported base and adapter."""

    def move(name, head, config):
        folders = {side: tmp_path / side for side in ("native", "ours", "adapter", "moved", "back")}
        native_of(name, head).save_pretrained(folders["native"])
        hf_llm.from_native(folders["native"]).save_pretrained(folders["ours"])
        return folders

    return move


def logits(model, name):
    extra = {"decoder_input_ids": parity.inputs(length=5, seed=2)} if name.startswith("t5") else {}
    with torch.no_grad():
        return model(input_ids=parity.inputs(), **extra).logits


@pytest.mark.parametrize("name", [*ONE_TO_ONE, *SPLIT])
def test_the_same_logits_on_both_sides(name, move):
    head, config = {**ONE_TO_ONE, **SPLIT}[name]
    folders = move(name, head, config)
    native = native_of(name, head)
    plain = logits(native, name)
    wanted = logits(adapt(native, config, folders["adapter"]), name)
    assert (wanted - plain).abs().max() > 0.01

    move_adapter(folders["adapter"], folders["moved"], folders["ours"])
    ours = PeftModel.from_pretrained(hf_llm.from_native(folders["native"]), folders["moved"])
    parity.assert_close(logits(ours, name), wanted, "logits of ours")

    move_adapter(folders["moved"], folders["back"], folders["native"])
    back = PeftModel.from_pretrained(native_of(name, head), folders["back"])
    parity.assert_close(logits(back, name), wanted, "logits after a round trip")
    before, after = (load_file(folders[side] / "adapter_model.safetensors") for side in ("adapter", "back"))
    assert sorted(before) == sorted(after)
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)


def test_an_adapter_trained_on_ours_goes_to_the_native_side(move):
    folders = move("bert", "ForMaskedLM", None)
    config = LoraConfig(**LORA, target_modules=["q_proj", "up_proj", "head_transform.dense"])
    wanted = logits(adapt(hf_llm.from_native(folders["native"]), config, folders["adapter"]), "bert")
    move_adapter(folders["adapter"], folders["moved"], folders["native"])
    parity.assert_close(
        logits(PeftModel.from_pretrained(native_of("bert", "ForMaskedLM"), folders["moved"]), "bert"), wanted, "logits"
    )


def test_the_configuration_names_modules_as_on_its_side(move):
    folders = move("gpt2", *SPLIT["gpt2"])
    adapt(native_of("gpt2", "ForCausalLM"), SPLIT["gpt2"][1], folders["adapter"])
    move_adapter(folders["adapter"], folders["moved"], folders["ours"])
    config = json.loads((folders["moved"] / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["fan_in_fan_out"] is False
    assert config["base_model_name_or_path"] == str(folders["ours"])


REFUSED = {
    "some parts": (LoraConfig(**LORA, target_modules=["q_proj", "v_proj"]), r"c_attn is .* in one: .* of .*k_proj"),
    "own A": (
        LoraConfig(**LORA, target_modules=["q_proj", "k_proj", "v_proj"]),
        "each has a lora_A.weight",
    ),
    "biases": (LoraConfig(**LORA, target_modules=["o_proj"], bias="all"), "`bias='all'` cannot be moved"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_moved_is_refused(case, move, tmp_path):
    config, message = REFUSED[case]
    folders = move("gpt2", "ForCausalLM", config)
    adapt(hf_llm.from_native(folders["native"]), config, folders["adapter"])
    with pytest.raises(InteropError, match=message):
        move_adapter(folders["adapter"], folders["moved"], folders["native"])
    assert not folders["moved"].exists() and not list(tmp_path.glob(".moved*"))


def test_other_adapters_and_modules_are_refused(move, tmp_path):
    folders = move("llama", *ONE_TO_ONE["llama"])
    adapt(native_of("llama", "ForCausalLM"), ONE_TO_ONE["llama"][1], folders["adapter"])
    with pytest.raises(InteropError, match="An adapter of a LLMDecoderForCausalLM .*: no counterparts of .*"):
        weights = load_file(folders["adapter"] / "adapter_model.safetensors")
        weights["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 32)
        save_file(weights, folders["adapter"] / "adapter_model.safetensors")
        move_adapter(folders["adapter"], folders["moved"], folders["native"])
    (folders["adapter"] / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    with pytest.raises(InteropError, match="PREFIX_TUNING adapter: only LORA and IA3"):
        move_adapter(folders["adapter"], folders["moved"], folders["ours"])


def test_on_the_command_line(move, tmp_path, capsys):
    folders = move("llama", *ONE_TO_ONE["llama"])
    adapt(native_of("llama", "ForCausalLM"), ONE_TO_ONE["llama"][1], folders["adapter"])
    with pytest.raises(SystemExit):
        cli.main(["import", str(folders["adapter"]), str(folders["moved"])])
    assert "is an adapter: name its base model, imported, by --base" in capsys.readouterr().err
    cli.main(["import", str(folders["adapter"]), str(folders["moved"]), "--base", str(folders["ours"])])
    cli.main(["export", str(folders["moved"]), str(folders["back"]), "--base", str(folders["native"])])
    assert "adapter" in capsys.readouterr().out
    before, after = (load_file(folders[side] / "adapter_model.safetensors") for side in ("adapter", "back"))
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
