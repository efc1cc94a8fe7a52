"""PEFT on every stack: each method trains, saves, reloads onto a fresh base, and merges where it can."""

import copy
import importlib
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import peft
import pytest
import torch
from models.tiny import EXPERTS, STACKS, inputs_of, logits_of, redraw, tiny_config, tiny_model
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from hf_llm import (
    LLMEncoderDecoderConfig,
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderForSequenceClassification,
)
from hf_llm.deferred import when_imported
from hf_llm.presets import CONFIGS
from hf_llm.registration import add_adapter_targets
from hf_llm.surgery.adapters import merge, merge_adapter, open_adapter
from hf_llm.tuning import adapters
from hf_llm.tuning.adapters import METHODS, AllocateRanks, add_adapter, check_peft_section


AUTO_CLASSES = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder_decoder": AutoModelForSeq2SeqLM,
}
# what a method needs at these sizes
FIELDS = {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1},
    "vera": {"r": 16},
    "oft": {"oft_block_size": 4, "r": 0},
    "boft": {"boft_block_size": 4},
    "fourierft": {"n_frequency": 50},
    "randlora": {"r": 4},
    "prompt": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
    "trainable_tokens": {"token_indices": [5, 6, 7, 8, 9, 10]},
}
VIRTUAL = ("prompt", "p_tuning", "prefix")  # virtual tokens: nothing to merge
NOT_HERE = {
    *(("encoder", method) for method in VIRTUAL),  # virtual tokens are for models that generate; or see the task heads
    ("encoder_decoder", "trainable_tokens"),  # refused: PEFT would train one of three tied weights
}
STEPS = 6
LEARNING_RATES = {"randlora": 0.003}  # of its random bases, which sum over the full rank
# the slowest, or near relatives of others
SLOW = ("boft", "fourierft", "hra", "loha", "lokr", "randlora", "rslora")
CASES = [
    pytest.param(method, stack, marks=[pytest.mark.slow] if method in SLOW else [])
    for method in METHODS
    for stack in STACKS
    if method != "qlora" and (stack, method) not in NOT_HERE
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A saved checkpoint of each stack."""
    folder = tmp_path_factory.mktemp("bases")
    for stack in STACKS:
        tiny_model(stack).save_pretrained(folder / stack)
    return {stack: str(folder / stack) for stack in STACKS}


def opened(base: str, stack: str):
    return AUTO_CLASSES[stack].from_pretrained(base)


def train(model, inputs: dict, steps: int = STEPS, learning_rate: float = 0.03) -> list[float]:
    """Losses of a few steps on one batch; each is asked for its own tokens."""
    labels = inputs.get("decoder_input_ids", inputs["input_ids"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    allocate, losses = AllocateRanks(), []
    for step in range(steps):
        loss = model.train()(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if model.active_peft_config.peft_type == "ADALORA":
            allocate.on_optimizer_step(None, type("State", (), {"global_step": step}), None, model=model)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize(("method", "stack"), CASES)
def test_a_method_trains_saves_reloads_and_merges(method, stack, bases, tmp_path):
    base, inputs = bases[stack], inputs_of(stack)
    section = {"method": method, **FIELDS.get(method, {})}
    check_peft_section(section)
    adapted = add_adapter(opened(base, stack), section, total_steps=STEPS + 2)
    losses = train(adapted, inputs, learning_rate=LEARNING_RATES.get(method, 0.03))
    assert losses[-1] < losses[0]
    expected = logits_of(adapted, inputs)
    adapted.save_pretrained(tmp_path)

    fresh = opened(base, stack).eval()
    plain = logits_of(fresh, inputs)
    assert (plain - expected[:, -plain.shape[1] :]).abs().max() > 1e-3  # virtual tokens of a decoder have logits too
    reloaded = open_adapter(fresh, tmp_path).eval()
    torch.testing.assert_close(logits_of(reloaded, inputs), expected, rtol=0, atol=1e-5)
    if method in VIRTUAL:
        with pytest.raises(ValueError, match="virtual tokens .* cannot be merged"):
            merge_adapter(opened(base, stack), tmp_path)
    else:
        merged = merge_adapter(opened(base, stack), tmp_path).eval()
        assert type(merged) is type(opened(base, stack))
        torch.testing.assert_close(logits_of(merged, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("method", ["lora", "ln_tuning", "prompt", "p_tuning"])
def test_a_task_head_is_trained_and_saved_beside_the_adapter(method, tmp_path):
    """The classifier of an encoder, transform included; the adapter's folder opens through AutoPeftModel."""
    config = tiny_config("encoder", classifier_transform=True, num_labels=3)
    redraw(LLMEncoderForSequenceClassification(config)).save_pretrained(tmp_path / "base")
    base = LLMEncoderForSequenceClassification.from_pretrained(tmp_path / "base")
    before = {name: value.clone() for name, value in base.state_dict().items() if not name.startswith("model.")}
    model = add_adapter(base, {"method": method, **FIELDS.get(method, {})})
    inputs = {**inputs_of("encoder"), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(3):
        model.train()(**inputs, labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = logits_of(model.eval(), inputs)
    model.save_pretrained(tmp_path / "adapter")
    reloaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(reloaded, inputs), expected, rtol=0, atol=1e-5)
    if method not in VIRTUAL:
        merge(reloaded).save_pretrained(tmp_path / "merged")
        merged = LLMEncoderForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(logits_of(merged, inputs), expected, rtol=0, atol=1e-5)
        assert all((merged.state_dict()[name] - value).abs().max() > 1e-3 for name, value in before.items())


def test_experts_are_adapted_by_target_parameters(tmp_path):
    """LoRA on the 3-D weights of all experts, merged and not."""
    tiny_model("decoder", **EXPERTS).save_pretrained(tmp_path / "base")
    inputs = inputs_of("decoder")
    section = {"method": "lora", "r": 2, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    adapted = add_adapter(opened(tmp_path / "base", "decoder"), section | {"target_modules": []})
    names = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 2 * 2 and all("experts" in name for name in names)
    losses = train(adapted, inputs)
    assert losses[-1] < losses[0]
    expected = logits_of(adapted, inputs)
    adapted.save_pretrained(tmp_path / "adapter")
    base = opened(tmp_path / "base", "decoder").eval()
    assert (logits_of(base, inputs) - expected).abs().max() > 1e-3
    merged = merge_adapter(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(merged, inputs), expected, rtol=0, atol=1e-5)


BOTH = ["embed_tokens", "lm_head"]
UNTIED = {"ensure_weight_tying": False}
# section -> whether embeddings and head of one stack are one weight afterwards
ON_TIED_WEIGHTS = {
    "embeddings": ({"method": "lora", "target_modules": ["embed_tokens"], **UNTIED}, False),
    "head": ({"method": "lora", "target_modules": ["lm_head"], **UNTIED}, False),
    "both": ({"method": "lora", "target_modules": BOTH, **UNTIED}, False),
    "both-as-one": ({"method": "lora", "target_modules": BOTH}, True),
    "head-as-one": ({"method": "lora", "target_modules": ["lm_head"]}, True),
    "dora": ({"method": "dora", "target_modules": BOTH}, False),  # each has its magnitudes
    "saved-embeddings": ({"method": "lora", "modules_to_save": ["embed_tokens"], **UNTIED}, False),
    "saved-head": ({"method": "lora", "modules_to_save": ["lm_head"], **UNTIED}, False),
    "saved-both": ({"method": "lora", "modules_to_save": BOTH, **UNTIED}, False),
    "saved-as-one": ({"method": "lora", "modules_to_save": ["lm_head"]}, True),
    "saved-ia3": ({"method": "ia3", "modules_to_save": ["lm_head"]}, False),
    "saved-ln_tuning": ({"method": "ln_tuning", "modules_to_save": ["lm_head"]}, False),
    "tokens": ({"method": "trainable_tokens", "token_indices": [5, 6, 7]}, True),
    "tokens-lora": ({"method": "lora", "trainable_token_indices": [5, 6, 7]}, True),
    "tokens-apart": ({"method": "lora", "trainable_token_indices": {"embed_tokens": [5], "lm_head": [6]}}, False),
    "ia3": ({"method": "ia3", "target_modules": ["lm_head"], "feedforward_modules": []}, False),
    "loha": ({"method": "loha", "target_modules": ["lm_head"]}, False),
    "adalora": ({"method": "adalora", "target_modules": ["lm_head"], **FIELDS["adalora"]}, False),
    "parameters": ({"method": "lora", "target_modules": [], "target_parameters": ["lm_head.weight"]}, False),
}
ONE_STACK = ("tokens", "tokens-lora", "tokens-apart")  # PEFT ties the adapters of one stack alone
ALIKE = ("both", "saved-both", "saved-ia3", "ia3", "loha", "adalora", "parameters")  # slow on the other stacks
TIED_CASES = [
    pytest.param(stack, name, marks=[pytest.mark.slow] if stack != "decoder" and name in ALIKE else [])
    for stack in STACKS
    for name in ON_TIED_WEIGHTS
    if stack != "encoder_decoder" or name not in ONE_STACK
]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize(("stack", "name"), TIED_CASES)
def test_merged_adapters_of_tied_weights_compute_the_same(stack, name, tmp_path):
    """Each weight has its own adapter, or they have one: merged, saved and opened again, the logits are those of base
    and adapter."""
    section, stays_tied = ON_TIED_WEIGHTS[name]
    given = copy.deepcopy(section)
    inputs = inputs_of(stack)
    adapted = add_adapter(tiny_model(stack), section, total_steps=10).eval()
    assert section == given
    redraw(torch.nn.ParameterList(p for p in adapted.parameters() if p.requires_grad), seed=1)
    expected = logits_of(adapted, inputs)
    assert (expected - logits_of(tiny_model(stack), inputs)).abs().max() > 1e-2
    merged = merge(adapted)
    torch.testing.assert_close(logits_of(merged, inputs), expected, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path)
    again, found = AUTO_CLASSES[stack].from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    torch.testing.assert_close(logits_of(again.eval(), inputs), expected, rtol=0, atol=1e-5)
    if stack != "encoder_decoder":
        assert again.config.tie_word_embeddings == stays_tied
        assert (again.lm_head.weight is again.model.embed_tokens.weight) == stays_tied


@pytest.mark.parametrize(("targets", "stays_shared"), [("q_proj", False), (r".*\.cross_attn\.q_proj", True)])
def test_merged_halves_share_their_layers_if_they_still_can(targets, stays_shared, tmp_path):
    """The halves' layers are one weight each under `share_layers`, but each has an adapter of its own."""
    config = tiny_config("encoder_decoder").to_dict() | {"share_layers": True}
    model = redraw(LLMEncoderDecoderForConditionalGeneration(LLMEncoderDecoderConfig(**config)))
    adapted = get_peft_model(model, LoraConfig(target_modules=targets if "." in targets else [targets])).eval()
    redraw(torch.nn.ParameterList(p for p in adapted.parameters() if p.requires_grad), seed=1)
    expected = logits_of(adapted, inputs_of("encoder_decoder"))
    merge(adapted).save_pretrained(tmp_path)
    again = opened(tmp_path, "encoder_decoder").eval()
    assert again.config.share_layers == stays_shared and again.config.tie_word_embeddings
    torch.testing.assert_close(logits_of(again, inputs_of("encoder_decoder")), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["saved-as-one", "tokens", "tokens-lora"])
def test_a_bias_that_peft_would_leave_out_is_refused(name):
    """PEFT computes a head that is tied to embeddings without its bias."""
    with pytest.raises(ValueError, match="PEFT leaves out the bias of lm_head"):
        add_adapter(tiny_model("encoder", lm_head_bias=True), ON_TIED_WEIGHTS[name][0])


def test_an_adapter_that_left_out_a_bias_is_not_merged():
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 6])
    with pytest.raises(ValueError, match="PEFT leaves out the bias of lm_head"):
        merge(get_peft_model(tiny_model("decoder", lm_head_bias=True), config))


@pytest.mark.parametrize("stack", STACKS)
def test_one_base_serves_several_adapters_by_request(stack, bases, tmp_path):
    """Rows of one batch under different adapters, or none, give what each adapter gives alone."""
    inputs = inputs_of(stack, batch=3)
    alone = {}
    for seed, name in enumerate(("first", "second")):
        model = get_peft_model(opened(bases[stack], stack), LoraConfig(target_modules=["q_proj", "down_proj"], r=2))
        redraw(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad), seed=seed)
        model.eval().save_pretrained(tmp_path / name)
        alone[name] = logits_of(model, inputs)
    alone["__base__"] = logits_of(opened(bases[stack], stack).eval(), inputs)

    shared = open_adapter(opened(bases[stack], stack).eval(), tmp_path / "first", adapter_name="first")
    shared.load_adapter(tmp_path / "second", adapter_name="second")
    chosen = ["second", "__base__", "first"]
    mixed = logits_of(shared.eval(), inputs, adapter_names=chosen)
    expected = torch.stack([alone[name][row] for row, name in enumerate(chosen)])
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)
    shared.set_adapter("second")
    torch.testing.assert_close(logits_of(shared, inputs), alone["second"], rtol=0, atol=1e-5)


def test_an_adapter_opens_with_its_base(bases, tmp_path):
    adapted = add_adapter(opened(bases["decoder"], "decoder"), {"method": "lora"})
    train(adapted, inputs_of("decoder"))
    adapted.save_pretrained(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        logits_of(model, inputs_of("decoder")), logits_of(adapted, inputs_of("decoder")), rtol=0, atol=1e-5
    )


def test_an_adapter_of_another_base_is_refused(bases, tmp_path):
    other = tiny_model("decoder", hidden_size=16, head_dim=4)
    get_peft_model(other, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is for another base"):
        merge_adapter(opened(bases["decoder"], "decoder"), tmp_path)


@pytest.mark.parametrize("method", VIRTUAL)
def test_virtual_tokens_are_refused_where_peft_is_older_than_transformers(method, bases, monkeypatch):
    monkeypatch.setattr("hf_llm.surgery.adapters.CACHE", "cache")
    monkeypatch.setattr(peft, "__version__", "0.21.2")
    with pytest.raises(ValueError, match=f"peft.method = '{method}': behind virtual tokens, PEFT 0.21.2"):
        add_adapter(tiny_model("decoder"), {"method": method, **FIELDS[method]})


def test_no_adapter_at_all_is_refused(bases, tmp_path):
    with pytest.raises(ValueError, match="is no PEFT adapter"):
        merge_adapter(opened(bases["decoder"], "decoder"), tmp_path)


def test_an_adapter_that_names_another_base_is_reported(bases, tmp_path, caplog):
    other = tiny_model("decoder", seed=1)
    other.name_or_path = "somebody/model"
    get_peft_model(other, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(tmp_path)
    merge_adapter(opened(bases["decoder"], "decoder"), tmp_path)
    assert "was trained on somebody/model, not on" in caplog.text


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "lorra"}, "peft.method = 'lorra' is unknown; did you mean 'lora'?"),
        ({"r": 8}, "peft.method = None is unknown"),
        ({"method": "lora", "rank": 8}, "unknown key 'peft.rank'"),
        ({"method": "lora", "task_type": "CAUSAL_LM"}, "unknown key 'peft.task_type'"),
    ],
)
def test_wrong_sections_are_refused(section, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        check_peft_section(section)


def test_qlora_without_bitsandbytes_is_refused(monkeypatch):
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'qlora' needs the package bitsandbytes"):
        check_peft_section({"method": "qlora"})


@pytest.mark.parametrize(
    ("device", "placed"),
    [(torch.device("cpu"), "cpu"), (torch.device("cuda", 1), "cuda:1"), (torch.device("mps"), "mps")],
)
def test_a_quantised_base_is_placed_on_the_device_of_its_process(device, placed, bases, monkeypatch):
    """Process 9 of a second node has local rank 1; where there is no accelerator, the device is the CPU."""
    state = SimpleNamespace(device=device, process_index=9, local_process_index=1, wait_for_everyone=lambda: None)
    monkeypatch.setattr("accelerate.PartialState", lambda: state)
    base, given = opened(bases["decoder"], "decoder"), {}
    monkeypatch.setattr(
        type(base), "from_pretrained", lambda path, **options: given.update(options, path=path) or base
    )
    assert adapters.open_quantised(base) is base and not any(p.requires_grad for p in base.parameters())
    assert given["path"] == bases["decoder"] and given["device_map"] == {"": placed}
    assert given["quantization_config"].load_in_4bit and given["config"] is base.config


def test_a_base_that_cannot_be_quantised_here_is_refused(bases, monkeypatch):
    """transformers' own check of bitsandbytes, which is asked for before a weight is read."""
    quantizer = "transformers.quantizers.quantizer_bnb_4bit"
    monkeypatch.setattr(f"{quantizer}.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="'qlora': bitsandbytes does not run on cpu: .*pip install"):
        adapters.open_quantised(opened(bases["decoder"], "decoder"))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("stack", STACKS)
def test_qlora_trains_on_a_cpu(stack, tmp_path):
    tiny_model(stack, hidden_size=64, head_dim=16).save_pretrained(tmp_path)
    adapted = add_adapter(adapters.open_quantised(opened(tmp_path, stack)), {"method": "qlora"})
    losses = train(adapted, inputs_of(stack))
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="the base is quantised"):
        merge(adapted)


@pytest.mark.parametrize(
    "section",
    [
        {"method": "trainable_tokens", "token_indices": [5]},
        {"method": "lora", "trainable_token_indices": [5]},
        {"method": "lora", "target_modules": ["lm_head"], "ensure_weight_tying": True},
    ],
)
def test_one_adapter_for_the_tied_weights_of_an_encoder_decoder_is_refused(section, bases):
    with pytest.raises(ValueError, match="not of an encoder-decoder"):
        add_adapter(opened(bases["encoder_decoder"], "encoder_decoder"), section)


@pytest.mark.parametrize("fields", [{"target_modules": ["embed_tokens"]}, {"trainable_token_indices": [5, 6, 7]}])
def test_scaled_embeddings_are_adapted_by_the_same_scale(fields):
    """Merged or not, an adapter on embeddings with a factor (Gemma, Granite) gives the same."""
    model = tiny_model("decoder", embedding_multiplier=4.0, tie_word_embeddings=False)
    adapted = add_adapter(model, {"method": "lora", "target_modules": ["q_proj"], **fields})
    redraw(torch.nn.ParameterList(p for p in adapted.parameters() if p.requires_grad))
    inputs = inputs_of("decoder")
    expected = logits_of(adapted.eval(), inputs)
    torch.testing.assert_close(logits_of(merge(adapted), inputs), expected, rtol=0, atol=1e-5)


def test_targets_that_do_not_exist_are_refused(bases):
    with pytest.raises(ValueError, match="method 'lora' does not fit this model.*c_attn"):
        add_adapter(opened(bases["decoder"], "decoder"), {"method": "lora", "target_modules": ["c_attn"]})


# ---- default targets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
def test_every_method_of_peft_with_llama_targets_has_ours(stack):
    for name, table in vars(peft.utils.constants).items():
        if name.endswith("_MODULES_MAPPING") and isinstance(table, dict) and "llama" in table:
            assert f"hf_llm_{stack}" in table, name


def test_defaults_are_made_when_peft_is_imported_later(monkeypatch):
    """PEFT's tables, loaded anew with the models there already, get the rows; the finder is gone then."""
    name = "peft.utils.constants"
    monkeypatch.delitem(sys.modules, name)
    finders = list(sys.meta_path)
    when_imported(name, add_adapter_targets)
    when_imported(name, add_adapter_targets)
    assert len(sys.meta_path) == len(finders) + 1
    tables = importlib.import_module(name)
    assert sys.meta_path == finders
    for model_type in CONFIGS:
        assert tables.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type] == ["q_proj", "v_proj"]
        assert "mlp_norm" in tables.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING[model_type]


AFTERWARDS = """
import sys
{prepare}
assert "peft" not in sys.modules, "importing the models imports PEFT"
from peft import LoraConfig, get_peft_model
model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules={targets}))
assert {{"q_proj", "v_proj"}} <= model.active_peft_config.target_modules
"""
PREPARATIONS = {
    "hf_llm": """
import hf_llm
model = hf_llm.LLMDecoderForCausalLM.from_pretrained({path!r})
""",
    "trust_remote_code": """
sys.modules["hf_llm"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({path!r}, trust_remote_code=True)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", PREPARATIONS)
def test_lora_in_a_new_process(way, bases, tmp_path, monkeypatch):
    """With hf_llm it needs no targets; on a checkpoint's own code it is told them."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    targets = "None" if way == "hf_llm" else "'all-linear'"
    code = AFTERWARDS.format(prepare=PREPARATIONS[way].format(path=bases["decoder"]), targets=targets)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
