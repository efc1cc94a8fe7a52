"""Parameter groups, Muon with AdamW as one optimizer, schedules."""

import re

import peft
import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, get_constant_schedule

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMEncoderConfig,
    LLMEncoderForMaskedLM,
    LLMEncoderForSequenceClassification,
    LLMEncoderModel,
)
from hf_llm.training import optimizers
from hf_llm.training.arguments import PretrainingArguments
from hf_llm.training.optimizers import MuonWithAdamW, build_optimizer, parameter_groups, parameter_roles
from hf_llm.training.trainer import PretrainTrainer


def tiny_model(**fields):
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "attention_bias": True}
    return LLMDecoderForCausalLM(LLMDecoderConfig(**sizes | fields))


def arguments(tmp_path, **settings):
    return PretrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", **{"max_steps": 20} | settings
    )


# pattern of names -> role, the first that matches; what matches none is a matrix
ROLES = {
    r"norm|bias$|sinks|shared_expert_gate": "vector",
    r"embed_tokens|embed_positions|embed_token_types|relative_attention_bias|lm_head|score\.": "embedding",
    r"mlp\.gate\.": "router",
    r"experts\.(gate_up|up|down)_proj$": "experts",
}
OPTIONS = {
    "plain": {"attention_bias": True, "lm_head_bias": True, "mlp_bias": True, "feed_forward": "plain"},
    "norms": {"qk_norm": "per_head", "norm_type": "layernorm", "norm_bias": True, "embedding_norm": True},
    "untied": {"tie_word_embeddings": False, "position_embedding": "learned", "qk_norm": "full"},
    "relative": {"position_embedding": "relative_bias", "embedding_size": 8, "embedding_projection": "tokens"},
    "sinks": {"attention_sinks": True, "layer_sharing": [0, 1, 0]},
    "experts": {"num_experts": 2, "num_experts_per_tok": 1, "expert_bias": True, "router_bias": True},
    "shared expert": {
        "num_experts": 2, "num_experts_per_tok": 1, "feed_forward": "plain", "shared_expert_intermediate_size": 8,
        "shared_expert_gate": True, "mlp_layer_types": "EDE",
    },
}  # fmt: skip


def roles_by_name(model) -> dict[str, str]:
    roles = parameter_roles(model)
    assert list(roles) == list(model.parameters())
    return {name: roles[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("option", OPTIONS)
def test_roles_follow_from_modules(option):
    for name, role in roles_by_name(tiny_model(**OPTIONS[option])).items():
        assert role == next((r for pattern, r in ROLES.items() if re.search(pattern, name)), "matrix"), name


def test_roles_of_an_encoder_and_of_task_heads():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LLMEncoderConfig(**sizes, num_attention_heads=2, type_vocab_size=2, head_transform=True)
    roles = roles_by_name(LLMEncoderForMaskedLM(config))
    assert roles["model.embed_token_types.weight"] == "embedding" and roles["head_transform.dense.weight"] == "matrix"
    assert roles_by_name(LLMEncoderForSequenceClassification(config))["score.weight"] == "embedding"
    assert roles_by_name(LLMEncoderModel(config))["layers.0.mlp.up_proj.weight"] == "matrix"


def test_roles_in_other_models():
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    mixtral = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    found = roles_by_name(mixtral)
    assert found["model.layers.0.mlp.gate.weight"] == "router"
    assert found["model.layers.0.mlp.experts.down_proj"] == "experts"
    assert found["model.norm.weight"] == "vector" and found["lm_head.weight"] == "embedding"
    own = nn.ModuleDict({"linear": nn.Linear(4, 4), "conv": nn.Conv1d(4, 4, 3), "norm": nn.LayerNorm((2, 4))})
    own.table, own.scale = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(4, 1))
    assert roles_by_name(own) == {
        "table": "other", "scale": "vector", "linear.weight": "matrix", "linear.bias": "vector",
        "conv.weight": "other", "conv.bias": "vector", "norm.weight": "vector", "norm.bias": "vector",
    }  # fmt: skip


def test_roles_of_adapters():
    targets = {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}
    model = tiny_model(tie_word_embeddings=False)
    found = roles_by_name(peft.get_peft_model(model, peft.LoraConfig(r=2, **targets)))
    q_proj, top = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model"
    assert found[f"{q_proj}.lora_A.default.weight"] == found[f"{q_proj}.base_layer.weight"] == "matrix"
    assert found[f"{top}.model.embed_tokens.lora_embedding_A.default"] == "embedding"
    assert found[f"{top}.lm_head.modules_to_save.default.weight"] == "embedding"


def test_every_trainable_parameter_is_in_one_group_and_roles_decide_what_decays():
    model = tiny_model(**OPTIONS["experts"], **OPTIONS["untied"])
    model.model.norm.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {p for p in model.parameters() if p.requires_grad}
    decays = {group["name"]: group["weight_decay"] for group in groups}
    assert decays == {"matrix": 0.1, "experts": 0.1, "embedding": 0.0, "router": 0.0, "vector": 0.0}
    assert {g["weight_decay"] for g in parameter_groups(model, 0.1, True) if g["name"] == "embedding"} == {0.1}


def steps(optimizer, model, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("batch", [2**22, 1100, 1])
def test_muon_takes_the_matrices_and_adamw_the_rest(batch, tmp_path, monkeypatch):
    """Torch's own, to the bit, however many matrices are orthogonalised together."""
    monkeypatch.setattr(optimizers, "BATCH_ELEMENTS", batch)
    model, twin = tiny_model(**OPTIONS["experts"]), tiny_model(**OPTIONS["experts"])
    twin.load_state_dict(model.state_dict())
    steps(build_optimizer(model, arguments(tmp_path, optimizer="muon", learning_rate=0.01)), model, 3, seed=0)

    groups = {g["name"]: g["params"] for g in parameter_groups(twin, 0.1)}
    slices = [nn.Parameter(matrix) for stacked in groups["experts"] for matrix in stacked.data]  # share memory
    muon = torch.optim.Muon(groups["matrix"] + slices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = groups["embedding"] + groups["router"] + groups["vector"]
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in twin.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients = [matrix for stacked in groups["experts"] for matrix in stacked.grad]
        for matrix, gradient in zip(slices, gradients, strict=True):
            matrix.grad = gradient
        muon.step()
        adamw.step()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_reloaded_muon_goes_on_to_the_same_weights(tmp_path):
    args = arguments(tmp_path, optimizer="muon", learning_rate=0.01)
    model, twin = tiny_model(), tiny_model()
    twin.load_state_dict(model.state_dict())
    optimizer = build_optimizer(model, args)
    steps(optimizer, model, 2, seed=0)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    steps(optimizer, model, 2, seed=1)

    twin.load_state_dict(weights)
    reloaded = build_optimizer(twin, args)
    reloaded.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(reloaded, twin, 2, seed=1)
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_schedule_scales_both_learning_rates_of_muon():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [
        {"name": "matrix", "params": [matrix], "weight_decay": 0.0},
        {"name": "vector", "params": [vector], "weight_decay": 0.0},
    ]
    optimizer = MuonWithAdamW(groups, lr=0.1, matrix_lr=0.4)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.2, 0.05])


@pytest.mark.parametrize(
    ("schedule", "at_half", "at_end"), [("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("wsd", 1.0, 0.1)]
)
def test_schedules_warm_up_and_end_at_the_minimum(schedule, at_half, at_end, tmp_path):
    args = arguments(tmp_path, schedule=schedule, min_lr_ratio=0.1, warmup_steps=4, decay_fraction=0.2)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = optimizers.SCHEDULES[schedule](optimizer, args, 20)
    rates = [scheduler.lr_lambdas[0](step) for step in range(21)]
    assert rates[4] == pytest.approx(1.0) and rates[0] < rates[1] < rates[2] < rates[3]
    assert rates[12] == pytest.approx(at_half) and rates[20] == pytest.approx(at_end)


def test_an_optimizer_and_a_schedule_of_ones_own_are_legal_and_used(tmp_path, monkeypatch):
    monkeypatch.setitem(optimizers.OPTIMIZERS, "rprop", lambda groups, args: torch.optim.Rprop(groups))
    monkeypatch.setitem(
        optimizers.SCHEDULES, "constant", lambda optimizer, args, steps: get_constant_schedule(optimizer)
    )
    args = arguments(tmp_path, optimizer="rprop", schedule="constant", eval_strategy="no")
    trainer = PretrainTrainer(model=tiny_model(), args=args, row_length=8)
    trainer.create_optimizer_and_scheduler(20)
    assert isinstance(trainer.optimizer, torch.optim.Rprop)
    assert [trainer.lr_scheduler.lr_lambdas[0](step) for step in (0, 19)] == [1, 1]
    with pytest.raises(ValueError, match="training.schedule = 'x' is unknown; legal: .*constant"):
        arguments(tmp_path, schedule="x")
