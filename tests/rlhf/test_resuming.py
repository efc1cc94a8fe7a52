"""An interrupted and resumed run has exactly the weights of an uninterrupted one; two processes train as one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from hf_llm.training.checkpoints import defect, last_good_checkpoint

from . import toys


ROOT = Path(__file__).parents[2]
# 16 prompts are two rollouts of 8, each passed over twice in two minibatches: 8 steps per epoch
PLAN = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_mini_batches": 2,
    "max_steps": 14,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_inside_rollouts": True,
    "kl_target": 1.0,
    "kl_horizon": 100,
    "normalize_scores": True,
    "early_stop_kl": 2e-4,
    "weight_decay": 0.1,
}


def trained_adapter():
    """A policy that comes with an adapter: what it was is the reference, and must outlive an interruption."""
    policy = get_peft_model(toys.decoder(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return policy


SETUPS = {
    "decoder": (toys.decoder, lambda: {}, {}),
    "LoRA": (
        toys.decoder,
        lambda: {"peft_config": LoraConfig(r=4, target_modules="all-linear")},
        {"early_stop_kl": 3e-6},
    ),
    "trained adapter": (trained_adapter, lambda: {}, {"early_stop_kl": 3e-6}),
    "encoder-decoder": (toys.encoder_decoder, lambda: {}, {"critic": "shared", "critic_warmup_steps": 3}),
}


def make(folder, setup: str, **changes):
    policy, arguments, own = SETUPS[setup]
    arguments = {"train_dataset": toys.prompts(16), **arguments()}
    return toys.trainer(folder, policy(), arguments=arguments, **{**PLAN, **own} | changes)


def same(one, other) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("setup", "steps"),
    [
        ("decoder", (7, 9)),  # between the passes over a rollout, and inside one of the second epoch
        *(pytest.param(setup, (4, 5, 6, 7, 8, 11, 13), marks=pytest.mark.slow) for setup in SETUPS),
    ],
)
def test_resuming_at_any_save_is_exact(setup, steps, tmp_path):
    whole = make(tmp_path / "whole", setup)
    whole.train()
    stopped = toys.logged(whole, "policy/stopped_early")
    assert 0 < sum(stopped) < len(stopped), "the plan shows nothing of early stops"
    for step in steps:
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        assert (checkpoint / "rollout-0.safetensors").exists() == (step % 4 != 0)
        assert defect(checkpoint) is None
        resumed = make(tmp_path / "resumed", setup, save_strategy="no")
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert same(whole, resumed), step
        assert resumed.kl.coefficient == whole.kl.coefficient != 0.05
        assert vars(resumed.score_moments) == vars(whole.score_moments)
        for name in ("reward", "value/loss", "policy/approx_kl"):
            assert toys.logged(resumed, name) == toys.logged(whole, name)


def test_prompts_come_in_another_order_in_each_epoch(tmp_path):
    seen = []

    def note(prompts, completions, **kwargs):
        seen.append(tuple(prompts))
        return toys.share_of_a(prompts, completions)

    toys.trainer(tmp_path, rewards=note, arguments={"train_dataset": toys.prompts(16)}, max_steps=8).train()
    first, second = sorted(seen[0] + seen[1]), sorted(seen[2] + seen[3])
    assert first == second == sorted(toys.prompts(16)["prompt"]) and seen[:2] != seen[2:]


def test_resuming_with_another_shape_is_refused(tmp_path):
    make(tmp_path / "run", "decoder", max_steps=1).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(ValueError, match="saved with num_iterations = 2, but it is 3 now"):
        make(tmp_path / "other", "decoder", num_iterations=3).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="critic.safetensors is of another critic"):
        make(tmp_path / "other", "decoder", critic="shared").train(resume_from_checkpoint=checkpoint)
    toys.decoder().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is no checkpoint of PPO"):
        make(tmp_path / "other", "decoder").train(resume_from_checkpoint=str(tmp_path / "model"))


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    """The reward is made to fall, so that the first evaluation is the best."""
    run = toys.trainer(
        tmp_path,
        rewards=lambda completions, trainer_state, **kwargs: [-trainer_state.global_step / 10] * len(completions),
        arguments={"eval_dataset": toys.prompts(8)},
        **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
        **{"load_best_model_at_end": True, "metric_for_best_model": "reward", "save_total_limit": 1},
    )
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    own = run.model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in saved.items())


# ---- runs launched as users launch them ----------------------------------------------------------------------------


def launch(*arguments: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*launcher, str(Path(__file__).parent / "run.py"), *arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    try:
        output = process.communicate(timeout=280)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["decoder", "encoder-decoder"])
def test_killed_and_resumed_is_exact(setup, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = launch(setup, str(killed), json.dumps(PLAN))
    deadline = time.monotonic() + 200
    while not (killed / "checkpoint-6").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (killed / "checkpoint-14").exists()
    assert last_good_checkpoint(killed) is not None

    finish(launch(setup, str(killed), json.dumps(PLAN)))
    finish(launch(setup, str(whole), json.dumps(PLAN)))
    for name in ("model.safetensors", "critic.safetensors"):
        a, b = (load_file(folder / "checkpoint-14" / name) for folder in (killed, whole))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["decoder", "LoRA", "encoder-decoder"])
def test_two_processes_train_as_one_with_the_same_global_batch(setup, tmp_path):
    """One minibatch per pass, so that both have the same rows in it, and greedy completions, which no process's random
    numbers change."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    plan = {
        **PLAN,
        "num_mini_batches": 1,
        "num_iterations": 3,
        "max_steps": 6,
        "generation_kwargs": {"do_sample": False},
    }
    plan |= {"whiten_rewards": True, "early_stop_kl": None, "adam_epsilon": 1e-3}
    for name, launcher, size in (("one", (sys.executable,), 4), ("two", torchrun, 2)):
        plan["per_device_train_batch_size"] = size
        finish(launch(setup, str(tmp_path / name), json.dumps(plan), launcher=launcher))
    weights = "adapter_model.safetensors" if setup == "LoRA" else "model.safetensors"
    for name in (weights, "critic.safetensors"):
        a, b = (load_file(tmp_path / folder / "checkpoint-6" / name) for folder in ("one", "two"))
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
    logs = [json.loads((tmp_path / f / "checkpoint-6" / "trainer_state.json").read_text()) for f in ("one", "two")]
    for one, two in zip(*(log["log_history"] for log in logs)):
        for figure in ("reward", "kl", "total_reward", "loss", "policy/entropy", "value/explained_variance"):
            if figure in one:
                assert one[figure] == pytest.approx(two[figure], rel=1e-3, abs=1e-4), figure
