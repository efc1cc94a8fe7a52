"""Two processes on a CPU (gloo) train as one does with the same global batch: DDP and FSDP2, AdamW and Muon."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch

from hf_llm.scale import training_bytes


STACKS = ("decoder", "encoder", "encoder_decoder")

# (stack, optimizer, strategy) of the runs on two processes; each is compared with the same run on one
PLANS = {
    "fast": [
        ("decoder", "muon", "ddp"),
        ("decoder", "muon", "fsdp2"),
        ("decoder", "adamw", "ddp"),
        ("experts", "adamw", "ddp"),
    ],  # fmt: skip
    "slow": [("decoder", "adamw", "fsdp2")]
    + [(stack, "muon", strategy) for stack in ("encoder", "encoder_decoder") for strategy in ("ddp", "fsdp2")],
}
CASES = [
    pytest.param(plan, *run, marks=pytest.mark.slow if plan == "slow" else ())
    for plan, runs in PLANS.items()
    for run in runs
]


def two_processes(*words: str) -> None:
    """Run `processes.py` on two processes; raises if one of them fails."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", processes.__file__, *words]
    run = subprocess.Popen(
        [sys.executable, *command], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    try:
        output = run.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # the ranks too
        raise
    assert run.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """`folder_of(plan)`: all runs of the plan, on two processes and on one."""

    @functools.cache
    def run(plan: str) -> Path:
        folder = tmp_path_factory.mktemp("processes")
        for stack in (*STACKS, "experts"):
            processes.make_model(stack).save_pretrained(folder / stack)
        runs = [*PLANS[plan], ("decoder", "evaluate", "")] if plan == "fast" else PLANS[plan]
        (folder / "plan.json").write_text(json.dumps(runs), encoding="utf-8")
        two_processes(str(folder / "plan.json"), str(folder))
        for stack, optimizer in {(stack, optimizer) for stack, optimizer, _ in PLANS[plan]}:
            processes.train(folder, stack, optimizer, "one", world_size=1)
        return folder

    return run


def reopened(run: Path, stack: str) -> dict:
    """Parameters of the model in `run`, which must hold all of them."""
    model, report = type(processes.make_model(stack)).from_pretrained(run, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("plan", "stack", "optimizer", "strategy"), CASES)
def test_two_processes_train_as_one(plan, stack, optimizer, strategy, folder_of):
    """Loss curve, gradient norms and weights; the sharded run began from a plain checkpoint and left one."""
    folder = folder_of(plan)
    one, two = folder / f"{stack}-{optimizer}-one", folder / f"{stack}-{optimizer}-{strategy}"
    curves = [json.loads((run / "losses.json").read_text(encoding="utf-8")) for run in (one, two)]
    assert len(curves[0]) == processes.STEPS and curves[0][0] != curves[0][-1]
    # torch's Muon orthogonalises in bfloat16, which turns float32 noise into differences of its own precision (2^-8);
    # orthogonalising each half of a matrix by itself would be off by as much as the change itself
    tolerance, drift = (1e-3, 0.03) if optimizer == "muon" else (1e-5, 1e-4)
    for a, b in zip(*curves, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=tolerance)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=10 * tolerance)
    start, expected, actual = (reopened(run, stack) for run in (folder / stack, one, two))
    for name in expected:
        change, difference = expected[name] - start[name], actual[name] - expected[name]
        assert 0 < change.norm() and difference.norm() <= drift * change.norm(), name


@pytest.mark.parametrize(("plan", "stack", "optimizer", "strategy"), CASES)
def test_memory_is_what_was_predicted(plan, stack, optimizer, strategy, folder_of):
    """Weights, gradients and optimizer state of one of two processes, within 1 %: what does not divide is padded."""
    run = folder_of(plan) / f"{stack}-{optimizer}-{strategy}"
    held = json.loads((run / "held.json").read_text(encoding="utf-8"))
    predicted = training_bytes(processes.make_model(stack), optimizer, {"ddp": "DDP", "fsdp2": "FSDP2"}[strategy], 2)
    assert held == pytest.approx(predicted, rel=0.01)


def test_evaluation_counts_every_row_once(folder_of, tmp_path):
    """On two processes whose last batches are uneven and on one, in batches of any size, the loss is that of all rows:
    the sum over their targets by the number of these."""
    folder = folder_of("fast")
    model = processes.make_model("decoder")
    two = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    one = {str(size): processes.evaluation_losses(model, size, tmp_path) for size in (2, 9)}
    data = processes.rows("decoder")[:7]
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    for found in (*two.values(), *one.values()):
        assert found["pretraining eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert found["tokens"] == pytest.approx(expected, rel=1e-5)
        assert found == pytest.approx(one["9"], rel=1e-5)
