"""Parameter groups, Muon with AdamW as one optimizer, schedules."""

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from hf_llm import LLMDecoderConfig, LLMDecoderForCausalLM
from hf_llm.training import optimizers
from hf_llm.training.arguments import PretrainingArguments
from hf_llm.training.optimizers import MuonWithAdamW, build_optimizer, parameter_groups


def tiny_model(**fields):
    config = LLMDecoderConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_bias=True,
        **fields,
    )
    return LLMDecoderForCausalLM(config)


def arguments(tmp_path, **settings):
    return PretrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", **{"max_steps": 20} | settings
    )


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(tied):
    model = tiny_model(tie_word_embeddings=tied, num_experts=2, num_experts_per_tok=1)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {g["name"]: [names[id(p)] for p in g["params"]] for g in parameter_groups(model, 0.1)}
    assert sorted(sum(groups.values(), [])) == sorted(names.values())
    assert groups["embedding"] == ["model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"])
    assert all("norm" in n or "bias" in n for n in groups["vector"])
    assert all("experts" in n for n in groups["experts"])
    assert any("q_proj.weight" in n for n in groups["matrix"])
    decays = {g["name"]: g["weight_decay"] for g in parameter_groups(model, 0.1)}
    assert decays == {"matrix": 0.1, "experts": 0.1, "embedding": 0.0, "vector": 0.0}
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
    model, twin = tiny_model(), tiny_model()
    twin.load_state_dict(model.state_dict())
    steps(build_optimizer(model, arguments(tmp_path, optimizer="muon", learning_rate=0.01)), model, 3, seed=0)

    groups = {g["name"]: g["params"] for g in parameter_groups(twin, 0.1)}
    muon = torch.optim.Muon(groups["matrix"], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = groups["embedding"] + groups["vector"]
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in twin.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
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
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, 4, 20, args.lr_scheduler_kwargs)
    rates = [scheduler.lr_lambdas[0](step) for step in range(21)]
    assert rates[4] == pytest.approx(1.0) and rates[0] < rates[1] < rates[2] < rates[3]
    assert rates[12] == pytest.approx(at_half) and rates[20] == pytest.approx(at_end)
