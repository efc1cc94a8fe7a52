"""Processes and threads of a run: whether those that a launcher was asked for are the ones that train.

On a CPU, `accelerate launch` falls short of its YAML in silence: `MULTI_CPU` with `num_processes: 2` runs one process,
FSDP and DeepSpeed with `use_cpu: true` run processes that do not know each other (accelerate 1.15,
`accelerate/commands/launch.py` and `accelerate/state.py`). A run would take hours until somebody noticed.
"""

import os
from collections.abc import Mapping

import torch
from transformers import TrainingArguments


# what `accelerate launch` sets, and the setting's name
_SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED"}
_REMEDY = "On a CPU, start them by: ACCELERATE_USE_CPU=true torchrun --nproc-per-node N RECIPE --config ..."


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes the launcher has started, by what it told this one."""
    return int(environment.get("WORLD_SIZE", 1))


def check_num_processes(expected: int | None, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ValueError unless `expected` processes were launched (None: any number)."""
    launched = launched_processes(environment)
    if expected is not None and expected != launched:
        raise ValueError(f"--num-processes = {expected}, but the launcher has started {launched}. {_REMEDY}")


def check_launch(args: TrainingArguments, environment: Mapping[str, str] = os.environ) -> None:
    """
    Raise ValueError where the launcher was asked for something else than what is running.

    Args:
        args: of this process, which has joined the others by now.
        environment: what the launcher has set.
    """
    launched = launched_processes(environment)
    if launched != args.world_size:
        raise ValueError(
            f"{launched} processes were launched, but this one trains among {args.world_size}: they do not know each "
            f"other and each would train a model of its own. {_REMEDY}"
        )
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if by_accelerate and "WORLD_SIZE" not in environment and "MASTER_ADDR" in environment:
        raise ValueError(
            "`accelerate launch` was given num_processes > 1 (MASTER_ADDR is set), but has started a single process. "
            f"{_REMEDY}; for a single process, set num_processes: 1 and leave MASTER_ADDR unset."
        )
    for variable, strategy in _SHARDING.items():
        if environment.get(variable, "false").lower() == "true" and args.device.type == "cpu":
            raise ValueError(
                f"distributed_type: {strategy} was asked for, but accelerate shards nothing on a CPU: every process "
                "would hold the whole model. Use distributed_type: MULTI_GPU on GPUs, or plain DDP. " + _REMEDY
            )


def available_cores() -> int:
    """Cores that this process may use, where the system says so (Linux); else all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def set_cpu_threads(threads: int | None) -> None:
    """Use `threads` CPU threads; by default all cores under `accelerate launch`, which would leave a process one."""
    if threads is None and "ACCELERATE_MIXED_PRECISION" in os.environ:
        threads = max(available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
    if threads is not None:
        torch.set_num_threads(threads)
