"""What every training recipe does around a `Trainer`: lock the directory, resume, show progress, stop on a signal."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from ..manifest import exclusive
from ..publishing.pushing import RunPushes
from .callbacks import ProgressLine, StopOnSignal
from .checkpoints import clear_staging
from .launching import available_cores, check_launch, set_cpu_threads  # noqa: F401
from .resuming import check_same_run


logger = logging.getLogger(__name__)


@contextlib.contextmanager
def run_directory(args: TrainingArguments) -> Iterator[Path]:
    """`args.output_dir` for this run alone, without leftovers of a killed one. Everything slow happens within.

    Raises:
        ValueError: another process keeps training into it, or the launcher was asked for other processes.
    """
    check_launch(args)
    disable_progress_bar()  # transformers' bars for loading and saving would break up the one that counts
    run_dir = Path(args.output_dir)
    with exclusive(run_dir) if args.should_save else contextlib.nullcontext():
        if args.should_save:
            clear_staging(run_dir)
        yield run_dir


def train(trainer: Trainer, checkpoint: Path | None) -> signal.Signals | None:
    """Train to the end, or until a signal.

    Args:
        trainer: with `AtomicCheckpoints`; its `run_facts` are compared with those of the checkpoint.
        checkpoint: what to go on from, as `resuming.find_checkpoint` gives it; None starts afresh.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: the checkpoint is of another run.
    """
    if checkpoint is not None:
        check_same_run(checkpoint, trainer.run_facts)
        logger.warning("resuming from %s", checkpoint)
    show_progress(trainer)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    if trainer.args.push_to_hub:
        trainer.pushes = RunPushes(trainer)
        trainer.add_callback(trainer.pushes)
        trainer.push_to_hub = lambda: trainer.pushes.finish() if trainer.args.should_save else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.received is not None and trainer.args.should_save:
        step = trainer.state.global_step
        print(
            f"Stopped by {stop.received.name} at step {step} of {trainer.state.max_steps}; saved "
            f"{trainer.args.output_dir}/checkpoint-{step}. The same command goes on from there.",
            flush=True,
        )
    return stop.received


def show_progress(trainer: Trainer) -> None:
    """One progress line instead of Trainer's."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressLine)
