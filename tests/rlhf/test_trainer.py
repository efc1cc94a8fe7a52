"""What a run does: ratios, critics, references, warm-up, early stops, evaluation, logs."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, TrainerCallback

from hf_llm.rlhf.runs import PANELS
from hf_llm.training.report import draw_history
from hf_llm.training.saving import TrainingDiverged

from . import toys
from .test_policy import POLICIES as NATIVE


def lora(task_type: str = "CAUSAL_LM", **fields) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type=task_type, **fields)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict, model) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if name in before and not tensor.equal(before[name])}


POLICIES = {
    "decoder": (toys.decoder, {}, {}),
    "shared critic": (toys.decoder, {}, {"critic": "shared"}),
    "LoRA": (toys.decoder, {"peft_config": lora(lora_dropout=0.1)}, {}),
    "LoRA, shared critic": (toys.decoder, {"peft_config": lora()}, {"critic": "shared"}),
    "encoder-decoder": (toys.encoder_decoder, {}, {}),
    "encoder-decoder, LoRA": (toys.encoder_decoder, {"peft_config": lora("SEQ_2_SEQ_LM")}, {}),
    "checkpointing": (toys.decoder, {}, {"gradient_checkpointing": True, "critic": "shared"}),
    "bf16": (toys.decoder, {}, {"bf16": True}),
    "BART": (NATIVE["BART"], {}, {}),
    "T5": (NATIVE["T5"], {}, {}),
    "Llama": (NATIVE["Llama"], {"value_peft_config": lora()}, {}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_first_ratio_is_exactly_one_and_the_first_kl_exactly_zero(name, tmp_path):
    make, arguments, changes = POLICIES[name]
    run = toys.trainer(
        tmp_path, make(), arguments=arguments, num_mini_batches=2, per_device_train_batch_size=4, **changes
    )
    run.train()
    first, second = run.state.log_history[:2]
    slack = 1e-6 if name == "T5" else 0  # torch takes another attention kernel where T5's bias has a gradient
    assert abs(first["policy/ratio_mean"] - 1) <= slack and abs(first["policy/ratio_max"] - 1) <= slack
    assert abs(first["policy/approx_kl"]) <= slack and first["kl"] == 0
    assert second["policy/ratio_max"] != 1 and second["policy/approx_kl"] > 0
    assert toys.logged(run, "kl")[1] != 0


# ---- critics and references ----------------------------------------------------------------------------------------


def test_adapters_of_policy_and_critic_share_one_frozen_base(tmp_path):
    policy = toys.decoder()
    untouched = copy.deepcopy(policy)
    run = toys.trainer(tmp_path, policy, arguments={"peft_config": lora()})
    backbone = run.critic.backbone
    assert isinstance(backbone, PeftModel) and run.ref_model is None
    q_proj = [model.layers[0].self_attn.q_proj for model in (backbone.get_base_model(), policy.model)]
    assert q_proj[0].base_layer.weight is q_proj[1].base_layer.weight
    assert q_proj[0].lora_A["default"].weight is not q_proj[1].lora_A["default"].weight

    before = weights(run.model)
    run.train()
    moved = changed(before, run.model)
    assert {"lora_" in name or "value_head" in name for name in moved} == {True}
    assert any("critic.backbone" in name for name in moved) and any("critic" not in name for name in moved)
    # the reference is the model as it was
    batch = run._pad([[3, 4], [5]], [[6, 7, 1], [8, 1]])
    run.model.train()
    reference = run._score_completions(batch)["ref_log_probs"][0]
    logits = untouched.eval()(torch.tensor([[3, 4, 6, 7, 1]])).logits[0, 1:4]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor([[6], [7], [1]])).squeeze(-1)
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)


def test_the_reference_of_a_trained_adapter_is_that_adapter(tmp_path):
    policy = get_peft_model(toys.decoder(), lora())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    run = toys.trainer(tmp_path, policy)
    run.train()
    assert toys.logged(run, "kl")[0] == 0 and toys.logged(run, "kl")[1] != 0


def test_a_critic_begins_as_the_reward_model(tmp_path):
    judge = toys.reward_model()
    arguments = {"reward_processing_classes": toys.make_tokenizer()}
    for kind in ("auto", "reward_model"):
        run = toys.trainer(tmp_path, rewards=judge, arguments=arguments, critic=kind)
        own, given = run.critic.backbone.state_dict(), judge.model.state_dict()
        assert all(torch.equal(own[name], weight) for name, weight in given.items())
        before = weights(judge)
        run.train()
        assert not changed(before, judge) and changed(weights(judge.model), run.critic.backbone)


def test_a_value_model_may_be_given(tmp_path):
    critic = toys.decoder(seed=5, hidden_size=16)
    critic.save_pretrained(tmp_path / "critic")
    for value_model in (copy.deepcopy(critic), str(tmp_path / "critic")):
        run = toys.trainer(tmp_path / "run", arguments={"value_model": value_model})
        assert changed(weights(critic.model), run.critic.backbone) == set()
        assert run.critic.value_head.in_features == 16
        run.train()


def test_a_smaller_learning_rate_for_the_critic(tmp_path):
    run = toys.trainer(tmp_path, critic_learning_rate=1e-5)
    run.create_optimizer()
    rates = {group["lr"] for group in run.optimizer.param_groups}
    own = {id(p) for g in run.optimizer.param_groups if g["lr"] == 1e-5 for p in g["params"]}
    assert rates == {1e-3, 1e-5} and own == {id(p) for p in run.critic.parameters()}


@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_in_the_warm_up_the_critic_alone_learns(critic, tmp_path):
    run = toys.trainer(tmp_path, critic=critic, critic_warmup_steps=4, weight_decay=0.1, max_steps=4)
    before = weights(run.model)
    run.train()
    moved = changed(before, run.model)
    assert moved and all(name.startswith("critic.") for name in moved)
    assert toys.logged(run, "kl") == [0, 0]
    run = toys.trainer(tmp_path, critic=critic, critic_warmup_steps=4, max_steps=6)
    run.train()
    assert any(not name.startswith("critic.") for name in changed(before, run.model))


def test_early_stop_leaves_the_rest_of_a_rollout_without_effect(tmp_path):
    def weights_after(steps, **changes):
        run = toys.trainer(
            tmp_path, num_iterations=4, max_steps=steps, lr_scheduler_type="constant", early_stop_kl=1e-9, **changes
        )
        run.train()
        return run, weights(run.model)

    (_, one), (run, four) = weights_after(1), weights_after(4)
    assert all(torch.equal(one[name], four[name]) for name in one)
    assert toys.logged(run, "policy/stopped_early") == [0, 1]
    run, five = weights_after(5)
    assert not all(torch.equal(one[name], five[name]) for name in one)  # the next rollout trains again


# ---- equivalences --------------------------------------------------------------------------------------------------


def test_accumulated_micro_batches_are_one_minibatch(tmp_path):
    """Token means over a whole minibatch, however it is cut. Greedy, so that both sample the same."""
    found = []
    for size, accumulation in ((8, 1), (2, 4)):
        run = toys.trainer(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            generation_kwargs={"do_sample": False},
            max_steps=4,
            adam_epsilon=1e-4,
        )
        run.train()
        found.append((run.model.state_dict(), toys.logged(run, "loss"), toys.logged(run, "grad_norm")))
    (one, losses, norms), (other, other_losses, other_norms) = found
    assert losses == pytest.approx(other_losses, abs=1e-5) and norms == pytest.approx(other_norms, rel=1e-4)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_evaluation_changes_nothing(tmp_path):
    runs = []
    for changes in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        run = toys.trainer(tmp_path, arguments={"eval_dataset": toys.prompts(16)}, **changes)
        run.train()
        runs.append(run)
    before, after = (run.model.state_dict() for run in runs)
    assert all(torch.equal(before[name], after[name]) for name in before)
    figures = runs[1].evaluate()
    assert 0 <= figures["eval_reward"] <= 1 and figures["eval_kl"] != 0
    assert figures["eval_completions/mean_length"] <= 6
    assert runs[1].evaluate()["eval_reward"] == figures["eval_reward"]  # it samples alike each time


# ---- options -------------------------------------------------------------------------------------------------------


def test_what_a_token_is_rewarded_with(tmp_path, monkeypatch):
    """Penalty, clipping, KL coefficient: total_reward = clipped score - penalty - kl_coef * kl."""

    def two(completions, **kwargs):
        return [2.0] * len(completions)

    run = toys.trainer(tmp_path, rewards=two, missing_eos_penalty=3.0, reward_clip_range=(-1, 1), kl_target=1e-3)
    run.train()
    history = [entry for entry in run.state.log_history if "reward" in entry]
    for entry in history:
        expected = 1.0 - 3.0 * (1 - entry["eos_rate"]) - entry["kl_coef"] * entry["kl"]
        assert entry["total_reward"] == pytest.approx(expected, abs=1e-5)
        assert entry["reward"] == 2
    coefficients = [entry["kl_coef"] for entry in history]
    assert coefficients[0] == 0.05 and coefficients[1] == pytest.approx(0.05 * (1 - 0.2 * 8 / 10_000))


def test_scores_are_normalized_by_all_that_were_seen(tmp_path):
    def high(completions, **kwargs):
        return [100.0 + 10 * score for score in toys.share_of_a(None, completions)]

    run = toys.trainer(tmp_path, rewards=high, normalize_scores=True, kl_coef=0.0)
    assert run.ref_model is None
    run.train()
    assert run.score_moments.count == 24 and run.score_moments.mean == pytest.approx(100, abs=10)
    assert abs(toys.logged(run, "total_reward")[0]) < 1e-5
    assert toys.logged(run, "kl") == [0, 0, 0]


def test_several_completions_per_prompt(tmp_path):
    seen = []

    def note(prompts, completions, **kwargs):
        seen.append(prompts)
        return toys.share_of_a(prompts, completions)

    toys.trainer(tmp_path, rewards=note, num_generations=4).train()
    assert all(batch[:4] == [batch[0]] * 4 and batch[4:] == [batch[4]] * 4 for batch in seen) and len(seen) == 3


def test_conversations(tmp_path):
    tokenizer = toys.make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ '<s> ' + m['content'] + ' ' }}{% endfor %}<s>"
    talks = [[{"role": "user", "content": text}] for text in toys.prompts()["prompt"]]
    data = Dataset.from_dict({"prompt": talks})

    def reward(prompts, completions, **kwargs):
        assert prompts[0][0]["role"] == "user" and completions[0][0]["role"] == "assistant"
        return toys.share_of_a(prompts, [talk[0]["content"] for talk in completions])

    run = toys.trainer(tmp_path, rewards=reward, arguments={"train_dataset": data, "processing_class": tokenizer})
    assert run._tokenize_prompts([[{"role": "user", "content": "a b"}]])[0] == [[2, 3, 4, 2]]
    run.train()
    assert len(toys.logged(run, "reward")) == 3


def test_streamed_prompts(tmp_path):
    run = toys.trainer(tmp_path, arguments={"train_dataset": toys.prompts().to_iterable_dataset()})
    run.train()
    assert toys.logged(run, "episodes") == [8, 16, 24]


@pytest.mark.parametrize("bf16", [False, True])
def test_continuous_batching_leaves_the_weights_in_their_precision(bf16, tmp_path):
    """TRL alone would cast them to bfloat16 for good. The cache is small: the default takes most of the memory."""
    run = toys.trainer(
        tmp_path,
        bf16=bf16,
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"page_size": 16, "num_blocks": 8, "max_batch_tokens": 32},
        max_steps=2,
    )
    before = weights(run.model)
    run.train()
    assert {p.dtype for p in run.model.parameters()} == {torch.float32} and changed(before, run.model)
    assert toys.logged(run, "policy/ratio_max")[0] == 1
    assert 1 <= toys.logged(run, "completions/min_length")[0] <= toys.logged(run, "completions/max_length")[0] <= 6


class Server:
    """In place of TRL's client of a vLLM server: takes weights by name and samples with them."""

    def __init__(self, **kwargs):
        self.own, self.syncs = toys.decoder(seed=9), 0

    def init_communicator(self, device): ...

    def reset_prefix_cache(self): ...

    def update_named_params(self, metadata, named_params):
        expected = dict(self.own.named_parameters())
        received = dict(named_params)
        assert [name for name, *_ in metadata] == list(received) and received.keys() == expected.keys()
        with torch.no_grad():
            for name, weight in received.items():
                expected[name].copy_(weight)
        self.syncs += 1

    def generate(self, prompts, temperature, max_tokens, **kwargs):
        sampling = {"do_sample": True, "temperature": temperature, "max_new_tokens": max_tokens}
        rows = [self.own.generate(torch.tensor([ids]), **sampling)[0, len(ids) :].tolist() for ids in prompts]
        return {"prompt_ids": prompts, "completion_ids": rows, "logprobs": None}


@pytest.mark.parametrize("arguments", [{}, {"peft_config": lora()}], ids=["full", "LoRA"])
@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_vllm_is_sent_the_policy_alone(critic, arguments, tmp_path, monkeypatch):
    """Before each rollout, without the critic, by TRL's own code; samples count as the policy's own."""
    monkeypatch.setattr("trl.generation.vllm_generation.is_vllm_available", lambda: True)
    monkeypatch.setattr("trl.generation.vllm_generation.VLLMClient", Server)
    run = toys.trainer(tmp_path, arguments=arguments, use_vllm=True, vllm_mode="server", critic=critic)
    before = weights(run.model)
    run.train()
    server = run.vllm_generation.vllm_client
    assert server.syncs == 3 and changed(before, run.model)
    assert toys.logged(run, "policy/ratio_max")[0] == 1 and len(toys.logged(run, "reward")) == 3
    assert any(not weight.equal(fresh) for weight, fresh in zip(server.own.parameters(), toys.decoder().parameters()))


# ---- saving and logs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["decoder", "shared critic", "LoRA", "encoder-decoder"])
def test_the_saved_policy_is_a_plain_model_with_the_critic_beside_it(name, tmp_path):
    make, arguments, changes = POLICIES[name]
    run = toys.trainer(tmp_path, make(), arguments=arguments, max_steps=2, **changes)
    run.train()
    run.save_final_model()
    opener = {
        "LoRA": AutoPeftModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }.get(name, AutoModelForCausalLM)
    if name == "LoRA":
        make().save_pretrained(tmp_path / "base")
        config = tmp_path / "adapter_config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")})
        )
    opened = opener.from_pretrained(tmp_path)
    own = {n: w for n, w in run.model.state_dict().items() if ".critic." not in f".{n}"}
    theirs = opened.state_dict()
    assert theirs.keys() == own.keys() and all(torch.equal(theirs[n], own[n]) for n in own)
    critic = load_file(tmp_path / "critic.safetensors")
    trained = {n: p for n, p in run.critic.named_parameters() if p.requires_grad}
    assert critic.keys() == trained.keys() and all(torch.equal(critic[n], p) for n, p in trained.items())
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == toys.make_tokenizer().get_vocab()
    assert not list(tmp_path.rglob("*.bin"))


def test_logs_and_tables(tmp_path, capsys):
    run = toys.trainer(tmp_path, log_completions=True, early_stop_kl=10.0)
    run.train()
    first = run.state.log_history[0]
    assert set(first) >= {
        *("reward", "reward_std", "total_reward", "kl", "kl_coef", "eos_rate", "episodes", "num_tokens"),
        *("completions/mean_length", "policy/entropy", "policy/loss", "policy/approx_kl", "policy/clip_fraction"),
        *("policy/ratio_mean", "policy/ratio_max", "policy/stopped_early", "value/loss", "value/clip_fraction"),
        *("value/mean", "value/explained_variance", "rewards/share_of_a/mean"),
    }
    tables = sorted((tmp_path / "completions").iterdir())
    rows = [json.loads(line) for line in tables[-1].read_text().splitlines()]
    assert len(tables) == 6 and len(rows) == 8
    assert set(rows[0]) == {"prompt", "completion", "share_of_a", "kl", "total_reward", "advantage"}
    assert rows[0]["share_of_a"] == pytest.approx(toys.share_of_a(None, [rows[0]["completion"]])[0])
    assert "share_of_a" in capsys.readouterr().out
    draw_history(figure := Figure(layout="constrained"), run.state.log_history, PANELS)
    drawn = {axes.get_ylabel(): len(axes.lines) for axes in figure.axes if axes.axison}
    assert drawn.pop("loss") == drawn.pop("reward") == drawn.pop("clipped (share)") == 2  # the loss: smoothed too
    assert drawn == dict.fromkeys(
        ("rewards by source", "KL (nats)", "KL coefficient", "tokens", "ended by EOS (share)")
        + ("entropy", "value loss", "explained variance"),
        1,
    )


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    run = toys.trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=6)

    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    run.critic.value_head.weight.fill_(float("nan"))

    run.add_callback(Break())
    with pytest.raises(TrainingDiverged, match=r"not finite at step 3 .*last good checkpoint is .*checkpoint-2\."):
        run.train()
    assert not (tmp_path / "checkpoint-4").exists()


@pytest.mark.slow
def test_trl_is_imported_late():
    code = "import hf_llm, hf_llm.rlhf, sys; assert 'trl' not in sys.modules and 'peft' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
