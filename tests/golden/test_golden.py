"""Checkpoints of every released version: they open in this one, and by the code that they carry."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from hf_llm import __version__
from hf_llm.models.compat import TESTED_TRANSFORMERS

from .make import MODELS, ROOT, main
from .reopen import reopen


TOLERANCE = 1e-5  # of logits of a few units, in float32, on any machine
VERSIONS = sorted(path.name for path in ROOT.glob("v*"))
SCRIPT = Path(__file__).with_name("reopen.py")


# what 0.1.0 ran with; later code says so itself
RANGES = {"v0.1.0": ("5.21", "5.23")}


def runs_here(version: str) -> bool:
    """Whether the code of a version is for the transformers that is installed."""
    oldest, newest = RANGES.get(version, TESTED_TRANSFORMERS)
    return Version(oldest).release <= Version(transformers.__version__).release[:2] <= Version(newest).release


@pytest.fixture
def checkpoints(tmp_path) -> list[Path]:
    """Every golden checkpoint whose code runs with the installed transformers, with that code."""
    folders = []
    for version in filter(runs_here, VERSIONS):
        for stack in MODELS:
            folder = shutil.copytree(ROOT / version / stack, tmp_path / f"{version.replace('.', '_')}_{stack}")
            shutil.copytree(ROOT / version / "code", folder, dirs_exist_ok=True)
            folders.append(folder)
    return folders


def test_this_version_has_its_golden_checkpoints():
    assert f"v{__version__}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("stack", MODELS)
def test_a_golden_checkpoint_gives_its_logits_in_this_version(version, stack):
    folder = ROOT / version / stack
    assert json.loads((folder / "config.json").read_text())["hf_llm_version"] == version.removeprefix("v")
    model, difference = reopen(folder)
    assert type(model).__module__.startswith("hf_llm.models.")
    assert difference <= TOLERANCE


def test_a_difference_is_seen(tmp_path):
    """A change of one weight by a hundredth."""
    folder = shutil.copytree(ROOT / VERSIONS[-1] / "decoder", tmp_path / "decoder")
    model, _ = reopen(folder)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[0, 0] += 0.01
    model.save_pretrained(folder)
    assert reopen(folder)[1] > TOLERANCE


def test_golden_checkpoints_give_their_logits_by_the_code_they_carry(checkpoints, tmp_path):
    if not checkpoints:
        pytest.skip(f"no golden checkpoint has code for transformers {transformers.__version__}")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_MODULES_CACHE": str(tmp_path / "m")
    }
    command = [sys.executable, "-P", str(SCRIPT), *map(str, checkpoints)]
    run = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    found = [line.split() for line in run.stdout.splitlines()]
    assert len(found) == len(checkpoints) and {module for module, _ in found} == {"transformers_modules"}
    assert all(float(difference) <= TOLERANCE for _, difference in found)


def test_golden_checkpoints_are_written_once_and_stay_small(tmp_path, capsys):
    assert main(tmp_path) == 0
    version = tmp_path / f"v{__version__}"
    assert {path.name for path in version.iterdir()} == {*MODELS, "code"} and list(tmp_path.iterdir()) == [version]
    assert sum(path.stat().st_size for path in version.rglob("*") if path.is_file()) < 500_000
    written = {path: path.read_bytes() for path in version.rglob("*") if path.is_file()}
    assert main(tmp_path) == 1 and "do not change" in capsys.readouterr().err
    assert written == {path: path.read_bytes() for path in version.rglob("*") if path.is_file()}
