"""Launchers that start something else than they were asked for are found out before anything is trained."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from hf_llm.training.launching import check_launch, check_num_processes


ROOT = Path(__file__).parents[2]
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}


def process(world_size: int = 1, device: str = "cpu") -> SimpleNamespace:
    return SimpleNamespace(world_size=world_size, device=torch.device(device))


@pytest.mark.parametrize(
    ("environment", "args", "message"),
    [
        ({"WORLD_SIZE": "2"}, process(1), "2 processes were launched, but this one trains among 1"),
        (ACCELERATE | {"MASTER_ADDR": "127.0.0.1"}, process(1), "num_processes > 1 .* a single process"),
        (ACCELERATE | {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, process(2), "distributed_type: FSDP"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, process(2), "distributed_type: DEEPSPEED"),
    ],
)
def test_a_launch_that_is_not_what_was_asked_for_is_refused(environment, args, message):
    with pytest.raises(ValueError, match=message):
        check_launch(args, environment)


@pytest.mark.parametrize(
    ("environment", "args"),
    [
        ({}, process()),
        (ACCELERATE, process()),
        ({"MASTER_ADDR": "head-node"}, process()),  # a cluster's login shell, no launcher
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, process(2)),
        (ACCELERATE | {"WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}, process(8, "cuda")),
        (ACCELERATE | {"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true"}, process(8, "cuda")),
    ],
)
def test_a_launch_as_asked_for_passes(environment, args):
    check_launch(args, environment)


def test_the_expected_number_of_processes_is_checked():
    check_num_processes(None, {"WORLD_SIZE": "3"})
    check_num_processes(3, {"WORLD_SIZE": "3"})
    with pytest.raises(ValueError, match="--num-processes = 8, but the launcher has started 1"):
        check_num_processes(8, {})


LAUNCHES = {
    "MULTI_CPU": ({"distributed_type": "MULTI_CPU", "use_cpu": True}, "has started a single process"),
    "FSDP": (
        {"distributed_type": "FSDP", "use_cpu": True, "fsdp_config": {"fsdp_version": 2}},
        "2 processes were launched, but this one trains among 1|distributed_type: FSDP was asked for",
    ),
}


@pytest.mark.parametrize("name", [pytest.param("MULTI_CPU"), pytest.param("FSDP", marks=pytest.mark.slow)])
def test_accelerate_launch_cannot_train_unconnected_processes(name, settings, write_config, tmp_path):
    """What accelerate really does with these files."""
    launch, message = LAUNCHES[name]
    config = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "mixed_precision": "no"}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(config | launch), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "launch.yaml")]
    command += [str(ROOT / "recipes" / "pretrain.py"), "--config", str(write_config(settings()))]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output = run.communicate(timeout=180)[0]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise
    assert run.returncode != 0 and not (tmp_path / "run").exists(), output
    assert re.search(message, output), output
