"""recipes/compare_runs.py: curves and table out of the checkpoints of runs."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


PATH = Path(__file__).parents[2] / "recipes" / "compare_runs.py"


@pytest.fixture
def compare(monkeypatch):
    spec = importlib.util.spec_from_file_location("compare_runs", PATH)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["compare_runs.py", *map(str, arguments)])
        return recipe.main()

    return run


def write_run(folder: Path, losses: dict[int, float], flops_per_step: float = 1e9) -> Path:
    last = max(losses, default=10)
    history = [{"step": 1, "loss": 9.0}, *({"step": step, "eval_loss": loss} for step, loss in losses.items())]
    state = {"global_step": last, "total_flos": last * flops_per_step, "log_history": history}
    checkpoint = folder / f"checkpoint-{last}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def test_means_ranges_and_what_came_before(compare, tmp_path, capsys):
    runs = [write_run(tmp_path / f"{i}", {10: 5.0, 20: 4.0 + i}) for i in range(2)]
    other, decoder = write_run(tmp_path / "other", {20: 6.0}), write_run(tmp_path / "decoder", {100: 3.0}, 2e9)
    picture = tmp_path / "curves.png"
    assert compare(picture, "--runs", "a", *runs, "--runs", "b", other, "--before", "a", decoder) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == [
        "| a | 2 | 2.00e+10 | 2.20e+11 | 4.500 | 4.000–5.000 |",
        "| b | 1 | 2.00e+10 | 2.00e+10 | 6.000 | 6.000–6.000 |",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("losses", "message"), [(None, "has no checkpoint"), ({}, "was never evaluated")])
def test_runs_that_cannot_be_compared(losses, message, compare, tmp_path, capsys):
    run = tmp_path / "run"
    if losses is not None:
        write_run(run, losses)
    assert compare(tmp_path / "x.png", "--runs", "a", run) == 2
    assert message in capsys.readouterr().err
