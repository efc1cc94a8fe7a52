"""A run that is killed, stopped or out of disk at any moment goes on to the weights of one that never was."""

import itertools
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from interrupted import finish, interrupt, start
from safetensors.torch import load_file

from hf_llm.manifest import defect
from hf_llm.training.checkpoints import last_good_checkpoint


STEPS = 8
COMBINATIONS = list(
    itertools.product(("decoder", "encoder", "encoder-decoder"), ("cached", "streaming", "mixture"), ("adamw", "muon"))
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FAST = {(signal.SIGKILL, 1), (signal.SIGTERM, 2)}  # streamed with Muon outside a save, and a mixture within one


@pytest.fixture
def plan(settings, corpus_dir):
    """`plan(folder, stack, data, optimizer)`: a run of `STEPS` steps that saves every second one."""

    def make(folder: Path, stack: str, data: str, optimizer: str) -> dict:
        made = settings(stack, max_steps=STEPS, eval_steps=1000, optimizer=optimizer)
        made["output_dir"] = str(folder)
        made["data"]["streaming"] = data == "streaming"
        if data == "mixture":
            parts = [str(corpus_dir / pattern) for pattern in ("module_1*.txt", "module_[2-9]*.txt")]
            made["data"]["corpus"] = [{"name": p, "weight": w} for p, w in zip(parts, (1.0, 2.0), strict=True)]
        return made

    return make


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory):
    """Combination -> weights and seconds of a run without interruption."""
    return tmp_path_factory.mktemp("whole"), {}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def whole_run(whole_runs, plan, combination) -> tuple[dict[str, torch.Tensor], float]:
    folder, known = whole_runs
    if combination not in known:
        folder = folder / "-".join(combination)
        begin = time.monotonic()
        finish(plan(folder, *combination))
        known[combination] = weights(folder), time.monotonic() - begin
    return known[combination]


def assert_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


@pytest.mark.parametrize(
    ("number", "index"),
    [
        pytest.param(number, i, marks=() if (number, i) in FAST else pytest.mark.slow, id=f"{number.name}-{i}")
        for number in SIGNALS
        for i in range(20)
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(number, index, plan, whole_runs, tmp_path):
    """20 interruptions by each signal: the odd ones at any moment of the run, the even ones within a save."""
    combination = COMBINATIONS[(index + 7 * SIGNALS.index(number)) % len(COMBINATIONS)]
    expected, seconds = whole_run(whole_runs, plan, combination)
    run = tmp_path / "run"
    draw = random.Random(f"{number} {index}")
    if index % 2:
        status = interrupt(start(plan(run, *combination)), number, draw.uniform(0, seconds), None)
    else:  # a checkpoint has about ten files
        saved = run / f".saving-checkpoint-{draw.choice((2, 4, 6))}"
        process = start(plan(run, *combination), slow_saves=0.02)
        status = interrupt(process, number, draw.uniform(0, 0.3), saved)
        assert status == -number if number == signal.SIGKILL else status == 128 + number
    assert index % 2 == 0 or status in (0, 1, -number, 128 + number), status  # 1: Ctrl-C while preparing
    good = last_good_checkpoint(run)
    assert good is None or defect(good) is None
    finish(plan(run, *combination))
    assert_same(weights(run), expected)


def test_a_full_disk_loses_nothing(plan, whole_runs, tmp_path):
    """The system refuses bytes in the middle of a file; the run says where, and goes on once there is room."""
    combination = COMBINATIONS[0]
    expected, _ = whole_run(whole_runs, plan, combination)
    run = tmp_path / "run"
    process = start(plan(run, *combination), disk=20_000)
    process.join(120)
    assert process.exitcode == 1
    error = Path(f"{run}.error").read_text(encoding="utf-8")
    assert f"could not save checkpoint-4 in {run}" in error and "too large" in error.lower()
    assert f"The last good checkpoint is {run / 'checkpoint-2'}" in error
    assert defect(run / "checkpoint-2") is None and not list(run.glob(".saving-*"))
    finish(plan(run, *combination))
    assert_same(weights(run), expected)
