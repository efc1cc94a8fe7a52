"""Runs launched as users launch them: kill -9, signals, two processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_llm.manifest import defect
from hf_llm.training.checkpoints import list_checkpoints
from hf_llm.training.pretraining import Pretraining, pretrain


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "pretrain.py"


def launch(config: Path, *overrides: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*launcher, str(RECIPE), "--config", str(config), *overrides],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen, path: Path, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.001)


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "stack",
    ["decoder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("encoder", "encoder-decoder"))],
)
@pytest.mark.usefixtures("no_plots")
def test_killed_while_saving_a_run_goes_on_to_the_same_weights(stack, settings, write_config, tmp_path):
    steps = 14
    plan = settings(stack, max_steps=steps, eval_steps=1000, optimizer="muon")
    process = launch(write_config(plan))
    try:
        wait_for(process, tmp_path / "run" / ".saving-checkpoint-4")
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = list_checkpoints(tmp_path / "run")
    assert left and defect(left[0]) is None and not (tmp_path / "run" / f"checkpoint-{steps}").exists()

    pretrain(Pretraining.from_dict(plan))
    pretrain(Pretraining.from_dict({**plan, "output_dir": str(tmp_path / "whole")}))
    assert same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_tells_by_the_exit_code(number, code, settings, write_config, tmp_path):
    process = launch(write_config(settings(max_steps=100_000, save_steps=100_000, report_to="tensorboard")))
    try:
        wait_for(process, tmp_path / "run" / "runs")  # made when training begins
        time.sleep(1)
        process.send_signal(number)
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == code, output
    (saved,) = list_checkpoints(tmp_path / "run")
    assert f"Stopped by {number.name} at step" in output and str(saved) in output
    assert defect(saved) is None


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(settings, write_config, tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    for name, launcher in (("one", (sys.executable,)), ("two", torchrun)):
        plan = settings(max_steps=4, global_batch_size=8, gradient_accumulation_steps=1, per_device_eval_batch_size=2)
        plan["output_dir"] = str(tmp_path / name)
        plan["model"]["residual_dropout"] = 0.0
        process = launch(write_config(plan), launcher=launcher)
        try:
            output = process.communicate(timeout=300)[0]
        finally:
            process.kill()
        assert process.returncode == 0, output
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
