"""Checkpoints in folders, both ways: what is carried along, which family is chosen, and what is refused."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import hf_llm
import hf_llm_cli as cli
from hf_llm.interop import InteropError, nearest_family

from . import parity
from .cases_gpt_like import GPT_LIKE
from .cases_llama_like import LLAMA_LIKE, SMALL


CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def decoder(**overrides):
    """A small random decoder of ours."""
    config = hf_llm.LLMDecoderConfig(**{**SMALL, **overrides})
    return hf_llm.LLMDecoderForCausalLM(config).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder with a small native checkpoint, its tokenizer, chat template and generation configuration."""
    folder = tmp_path_factory.mktemp("llama")
    native = parity.native_model("llama", **SMALL)
    native.generation_config.update(max_new_tokens=5, do_sample=True, temperature=0.7)
    native.save_pretrained(folder)
    words = {f"w{i}": i for i in range(parity.VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(llama, tmp_path):
    """A copy of that folder, to be damaged."""
    return shutil.copytree(llama, tmp_path / "damaged")


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# ---- from_native by path -------------------------------------------------------------------------------------------


def test_from_native_by_path(llama):
    native = transformers.AutoModelForCausalLM.from_pretrained(llama)
    ours = hf_llm.from_native(llama)
    assert isinstance(ours, hf_llm.LLMDecoderForCausalLM)
    assert not ours.training
    parity.assert_same_logits(native, ours)
    assert ours.generation_config.temperature == 0.7
    assert ours.config.name_or_path == str(llama)


def test_dtype_is_honoured(llama):
    assert hf_llm.from_native(llama, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert hf_llm.from_native(llama, dtype=torch.bfloat16).config.dtype == torch.bfloat16


def test_without_architectures_the_first_head_is_opened(damaged):
    edit_config(damaged, architectures=None)
    assert isinstance(hf_llm.from_native(damaged), hf_llm.LLMDecoderForCausalLM)


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_heads_by_path(head, tmp_path):
    parity.native_model("llama", head, **SMALL).save_pretrained(tmp_path)
    assert type(hf_llm.from_native(tmp_path)).__name__ == f"LLMDecoder{head}"


# ---- to_native -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "family"),
    [
        ({}, "qwen3"),
        ({"layer_types": "SL", "sliding_window": 4}, "qwen3"),
        ({"num_experts": 4, "moe_intermediate_size": 16}, "qwen3_moe"),
        ({"num_experts": 4, "mlp_layer_types": "DE"}, "qwen3_moe"),
        ({"qk_norm": None}, "llama"),
        ({"qk_norm": None, "attention_bias": True, "mlp_bias": True}, "llama"),
        ({"qk_norm": None, "sliding_window": 4, "layer_types": "S"}, "mistral"),
        ({"qk_norm": None, "num_experts": 4}, "mixtral"),
        ({"qk_norm": None, "attention_bias": True, "attention_output_bias": False}, "qwen2"),
        ({"qk_norm": None, "residual_multiplier": 0.5}, "granite"),
        ({"qk_norm": None, "rope_layers": [True, False, True]}, "smollm3"),
        (
            {"qk_norm": None, "norm_type": "layernorm", "norm_placement": "parallel", "rope_interleaved": True},
            "cohere",
        ),
        ({"qk_norm": "full", "norm_placement": "branch"}, "olmo2"),
    ],
)
def test_the_nearest_family_is_chosen(overrides, family):
    model = decoder(**overrides)
    assert nearest_family(model.config) == family
    native = hf_llm.to_native(model)
    assert native.config.model_type == family
    ids = parity.inputs()
    with torch.no_grad():
        parity.assert_close(native(ids).logits, model(ids).logits, "logits")


def test_hf_llm_defaults_are_a_qwen3():
    assert nearest_family(hf_llm.LLMDecoderConfig()) == "qwen3"


def test_fields_that_say_nothing_do_not_matter():
    model = decoder(qk_norm=None, norm_bias=True, norm_topk_prob=False, attention_scale=8**-0.5, parallel_norms=2)
    assert hf_llm.to_native(model, "llama").config.model_type == "llama"


def test_whole_numbers_become_floats_where_the_native_class_wants_them():
    model = decoder(
        qk_norm=None, norm_type="layernorm", norm_placement="parallel", rope_interleaved=True, logit_scale=2
    )
    assert hf_llm.to_native(model, "cohere").config.logit_scale == 2.0


def test_a_named_family_that_cannot_express_the_model_names_each_field():
    with pytest.raises(InteropError) as error:
        hf_llm.to_native(decoder(norm_placement="sandwich", attn_logit_softcapping=30.0), "llama")
    for field in ("`norm_placement='sandwich'`", "`qk_norm='head'`", "`attn_logit_softcapping=30.0`"):
        assert field in str(error.value)


def test_a_model_that_no_family_expresses():
    with pytest.raises(
        InteropError, match="No native architecture can express this model(?s:.*)qwen3 .*`clip_qkv=1.0`"
    ):
        hf_llm.to_native(decoder(clip_qkv=1.0))


def test_a_dense_model_is_no_mixtral():
    with pytest.raises(InteropError, match="`num_experts=None`: it has experts"):
        hf_llm.to_native(decoder(qk_norm=None), "mixtral")


def test_partial_rotation_is_no_llama():
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    with pytest.raises(InteropError, match="partial_rotary_factor=0.5"):
        hf_llm.to_native(decoder(qk_norm=None, rope_parameters=rope), "llama")


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(InteropError, match="'lama' is not known. Known, nearest first: llama, "):
        hf_llm.to_native(decoder(), "lama")


# ---- bad input -----------------------------------------------------------------------------------------------------


def missing_weight(folder):
    edit_weights(folder, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))


def extra_weight(folder):
    edit_weights(folder, lambda state: state.update({"model.layers.0.adapter.weight": torch.ones(2)}))


def wrong_shape(folder):
    edit_weights(folder, lambda state: state.update({"model.norm.weight": torch.ones(3)}))


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def sharded(folder):
    """The same in six files and an index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def without_a_shard(folder):
    sharded(folder)
    (folder / "model-00002-of-00006.safetensors").unlink()


def damaged_index(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text("{")


def shard_elsewhere(name):
    def edit(folder):
        sharded(folder)
        index = folder / "model.safetensors.index.json"
        (folder / "model-00002-of-00006.safetensors").rename(folder.parent / "x.safetensors")
        text = index.read_text().replace("model-00002-of-00006.safetensors", name.format(folder.parent))
        index.write_text(text)

    return edit


BAD = {
    "no-config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no-model-type": (lambda folder: edit_config(folder, model_type=None), "no `model_type`"),
    "unknown-type": (lambda folder: edit_config(folder, model_type="qwen4"), "'qwen4' is not known.* first: qwen"),
    "missing": (missing_weight, "lacks weights: model.layers.1.mlp.up_proj.weight"),
    "extra": (extra_weight, "does not: model.layers.0.adapter.weight"),
    "shape": (wrong_shape, r"other shapes .*: model.norm.weight \(3,\) instead of \(32,\)"),
    "truncated": (truncated, "damaged or cut short"),
    "empty-file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "shard": (without_a_shard, r"lacks model-00002-of-00006.safetensors, which model.safetensors.index.json names"),
    "shard-outside": (shard_elsewhere("../x.safetensors"), r"outside its folder, .*: \.\./x.safetensors"),
    "absolute-shard": (shard_elsewhere("{}/x.safetensors"), r"outside its folder, .*/x.safetensors"),
    "index": (damaged_index, r"model.safetensors.index.json is damaged"),
    "pickled": (pickled, r"only in pytorch_model.bin, a format that can run code.*`save_pretrained`"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "quantised": (
        lambda folder: edit_config(folder, quantization_config={"quant_method": "mxfp4"}),
        r"is quantised \(mxfp4\).*dequantize",
    ),
    "ours": (lambda folder: edit_config(folder, model_type="hf_llm_decoder"), "checkpoint of hf_llm already"),
    "bad-value": (lambda folder: edit_config(folder, hidden_act="nonsense"), "nonsense"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_refused_and_nothing_is_written(case, damaged, tmp_path, capsys):
    damage, message = BAD[case]
    damage(damaged)
    with pytest.raises(ValueError, match=message):
        hf_llm.from_native(damaged)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["import", str(damaged), str(tmp_path / "out" / "model")])
    assert capsys.readouterr().err.startswith("hf-llm: ")
    assert list((tmp_path / "out").iterdir()) == []


def test_checkpoints_in_several_files(damaged):
    expected = transformers.AutoModelForCausalLM.from_pretrained(damaged)
    sharded(damaged)
    parity.assert_same_logits(expected, hf_llm.from_native(damaged))


@pytest.mark.parametrize("name", ["nowhere", "config.json"])
def test_what_is_no_folder_is_refused(name, damaged):
    with pytest.raises(InteropError, match=f"{name} is no folder: name the folder that has config.json"):
        hf_llm.from_native(damaged / name)


def test_a_refused_export_writes_nothing(tmp_path, capsys):
    decoder(clip_qkv=1.0).save_pretrained(tmp_path / "ours")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "out" / "native")])
    assert "`clip_qkv=1.0`" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_only_our_checkpoints_are_exported(llama, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(llama), str(tmp_path / "out")])
    assert "is no checkpoint of hf_llm: `model_type='llama'`" in capsys.readouterr().err


def test_a_destination_in_use_is_left_alone(llama, tmp_path, capsys):
    (tmp_path / "precious").write_text("keep me")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["import", str(llama), str(tmp_path)])
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


# ---- the command line ----------------------------------------------------------------------------------------------


def test_import_and_export_carry_everything(llama, tmp_path, capsys):
    cli.main(["import", str(llama), str(tmp_path / "ours")])
    assert "LLMDecoderForCausalLM" in capsys.readouterr().out
    cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "native")])
    assert "LlamaForCausalLM (model_type 'llama')" in capsys.readouterr().out
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "native" / "model.safetensors")
    assert sorted(before) == sorted(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    messages = [{"role": "w4", "content": "w5"}]
    expected = transformers.AutoTokenizer.from_pretrained(llama).apply_chat_template(messages)["input_ids"]
    for folder in ("ours", "native"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        assert tokenizer.apply_chat_template(messages)["input_ids"] == expected
        generation = transformers.GenerationConfig.from_pretrained(tmp_path / folder)
        assert (generation.temperature, generation.max_new_tokens, generation.eos_token_id) == (0.7, 5, 2)


def test_export_as_a_named_family(tmp_path):
    decoder(qk_norm=None, sliding_window=4, layer_types="S").save_pretrained(tmp_path / "ours")
    cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "nearest")])
    assert transformers.AutoConfig.from_pretrained(tmp_path / "nearest").model_type == "mistral"
    cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "phi3"), "--as", "phi3"])
    phi3 = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "phi3")
    assert phi3.config.model_type == "phi3"
    ours = hf_llm.LLMDecoderForCausalLM.from_pretrained(tmp_path / "ours")
    parity.assert_same_logits(phi3, ours)


def test_a_checkpoint_without_a_tokenizer(tmp_path):
    decoder().save_pretrained(tmp_path / "ours")
    cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "native")])
    assert not list((tmp_path / "native").glob("tokenizer*"))


@pytest.mark.parametrize("family", ["llama", "stablelm", "gpt_neox", "qwen3_moe"])
def test_fields_are_repeated_for_other_engines(family, tmp_path):
    """At the top of config.json, and transformers opens the same model."""
    base, _ = (LLAMA_LIKE | GPT_LIKE)[family]
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    rope = rope if family in ("stablelm", "gpt_neox") else {k: v for k, v in rope.items() if "partial" not in k}
    native = parity.native_model(family, **(copy.deepcopy(base) | {"rope_parameters": rope}))
    hf_llm.from_native(native).save_pretrained(tmp_path / "ours")
    cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "native"), "--as", family])
    written = json.loads((tmp_path / "native" / "config.json").read_text())
    for ours, theirs in {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}.items():
        assert written.get(theirs) == rope.get(ours)
    assert (written.get("rotary_pct") == 0.5) == (family == "gpt_neox")
    assert ("num_experts" in written and "head_dim" in written) == (family == "qwen3_moe")
    opened = type(native).from_pretrained(tmp_path / "native")
    assert opened.config.rope_parameters == native.config.rope_parameters
    ids = parity.inputs()
    assert torch.equal(opened(ids).logits, native.eval()(ids).logits)
