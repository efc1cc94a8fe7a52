"""Stands in for a module that transformers' source distribution leaves out: several processes on one CPU, by gloo."""

import functools
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _get_distributed_backend() -> str:
    return "gloo"


def _get_distributed_device_type() -> str:
    return "cpu"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    """Nothing to choose on a CPU."""


# processes are forked from a server that has done the imports already, which take longer than the tests
PRELOADED = ["hf_llm", "transformers_tests.test_fsdp_mixin", "transformers_tests.test_tensor_parallel_mixin"]


def _start_rank_processes(function, args: tuple, nprocs: int) -> None:
    """Run `function(rank, *args)` in `nprocs` processes; raises if one of them does."""
    mp.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(function, args=args, nprocs=nprocs, start_method="forkserver")


def _in_process_group(rank: int, function, world_size: int, port: int, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        function(rank, *args)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_distributed(world_size: int):
    """`run_distributed(2)(function)(*args)` calls `function(rank, *args)` in two processes that form a group."""

    def decorate(function):
        @functools.wraps(function)
        def run(*args):
            with socket.socket() as probe:
                probe.bind(("localhost", 0))
                port = probe.getsockname()[1]
            _start_rank_processes(_in_process_group, args=(function, world_size, port, args), nprocs=world_size)

        return run

    return decorate
