"""Runs in processes of their own that a test interrupts; forked from a server that has imported everything once."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

from hf_llm import manifest
from hf_llm.training import checkpoints, report, trainer
from hf_llm.training.pretraining import Pretraining, pretrain


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def _run(plan: dict, slow_saves: float, disk: int | None) -> None:
    """One run; its exit status is a recipe's, 1 after a `CheckpointError`, which goes to `<output_dir>.error`."""
    report.draw_figures = trainer.peak_flops = lambda *args, **kwargs: None  # they take longer than the training
    flush, save = manifest.flush, trainer.PretrainTrainer._save_checkpoint

    def slow_flush(path):
        time.sleep(slow_saves)
        flush(path)

    def save_on_a_full_disk(self, *args):
        if self.state.global_step > 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
        save(self, *args)

    manifest.flush = slow_flush
    if disk is not None:
        trainer.PretrainTrainer._save_checkpoint = save_on_a_full_disk
    try:
        stopped_by = pretrain(Pretraining.from_dict(plan))
    except checkpoints.CheckpointError as error:
        Path(plan["output_dir"] + ".error").write_text(str(error), encoding="utf-8")
        os._exit(1)
    os._exit(128 + stopped_by if stopped_by else 0)


def start(plan: dict, slow_saves: float = 0.0, disk: int | None = None) -> multiprocessing.Process:
    """
    Begin a run.

    Args:
        slow_saves: seconds that each file of a checkpoint takes to reach the disk, so that an interruption meets it.
        disk: bytes that a file may have from the second checkpoint on.
    """
    process = FORKS.Process(target=_run, args=(plan, slow_saves, disk), daemon=True)
    process.start()
    return process


def finish(plan: dict) -> None:
    """Run to the end."""
    process = start(plan)
    process.join(120)
    assert process.exitcode == 0, process.exitcode


def interrupt(process: multiprocessing.Process, number: signal.Signals, after: float, path: Path | None) -> int | None:
    """Send a signal `after` seconds, from the appearance of `path` on if there is one. Returns the exit status."""
    deadline = time.monotonic() + 120
    while path is not None and not path.exists() and process.is_alive():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.001)
    process.join(after)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(120)
    return process.exitcode
