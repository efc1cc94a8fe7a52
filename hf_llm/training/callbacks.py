"""Trainer callbacks: the progress line, stopping on a signal, and the report at every save."""

import logging
import os
import signal
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from .samples import fenced


logger = logging.getLogger(__name__)


class ProgressLine(ProgressCallback):
    """One line: steps, time left, loss, tokens per second, share of peak FLOPs; and one line per evaluation."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step, self.shown = state.global_step, {}
        if state.is_world_process_zero:
            interactive = sys.stderr.isatty()
            timing = {"mininterval": 0.5 if interactive else 15.0, "smoothing": 0.1, "dynamic_ncols": interactive}
            self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", **timing)

    def on_prediction_step(self, args, state, control, **kwargs):
        """No second bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        if "loss" in logs:
            self.shown |= logs  # rewards are logged only by the step that begins a rollout
            self.training_bar.set_postfix_str(progress_text(self.shown), refresh=False)
        elif text := evaluation_text(logs):
            self.training_bar.write(f"step {state.global_step}: {text}", file=sys.stderr)


# key of a training log -> how the progress line shows it
_PROGRESS = {
    "loss": "loss {:.3f}",
    "reward": "reward {:.3f}",
    "kl": "KL {:.2f}",
    "rewards/accuracies": "accuracy {:.2f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "{:.0%} of peak FLOPs",
}
# figures of an evaluation that are about itself
_BOOKKEEPING = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "num_tokens")


def progress_text(logs: dict) -> str:
    """The changing part of the progress line, from one training log entry."""
    return ", ".join(form.format(logs[key]) for key, form in _PROGRESS.items() if key in logs)


def evaluation_text(logs: dict) -> str:
    """At most six figures of an evaluation, those of the progress line first; or nothing if there are none."""
    figures = sorted(measures(logs).items(), key=lambda figure: figure[0] not in _PROGRESS)[:6]
    shown = [f"{name.replace('_', ' ')} {value:,.4f}" for name, value in figures]
    return "validation " + ", ".join(shown) if shown else ""


def measures(logs: dict) -> dict[str, float]:
    """What a log entry says about validation data, by names without `eval_`."""
    found = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_")}
    return {
        name: value
        for name, value in found.items()
        if name not in _BOOKKEEPING and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class StopOnSignal(TrainerCallback):
    """Save and stop at the next step boundary after SIGINT or SIGTERM; a second SIGINT stops at once.

    With several processes all stop at the same step, when any of them was told to. The end of `accelerate launch`,
    which does not pass signals on, counts as SIGTERM.

    Attributes:
        received: the signal that stopped the run, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous = {}
        self._group = None
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:  # asked in each step: on CPUs, for reading an accelerator's answer would wait for it
            self._group = dist.new_group(backend="gloo")
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number, frame):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(f"\n{self.received.name}: saving at the end of this step", file=sys.stderr, flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.received is None and self._launcher is not None and os.getppid() != self._launcher:
            self.received = signal.SIGTERM
        if self._group is not None:
            told = torch.tensor(int(self.received or 0))
            dist.all_reduce(told, dist.ReduceOp.MAX, self._group)
            self.received = signal.Signals(told.item()) if told.item() else None
        if self.received is not None and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if state.global_step >= state.max_steps:
            self.received = None


class SamplesAtEvaluation(TrainerCallback):
    """Show what the model makes of a few prompts whenever it is evaluated during training.

    The history of the run (`TrainerState.log_history`) keeps the samples as an entry `{"step", "samples"}`, so that a
    run that goes on from a checkpoint has them once.

    Args:
        draw: returns pairs of prompt and output; called on every process.
        trackers: the trainer's callbacks, of which TensorBoard's shows the samples as a text.
    """

    def __init__(self, draw: Callable[[], list[tuple[str, str]]], trackers: list[TrainerCallback]):
        self.draw, self.trackers, self.training = draw, trackers, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False

    def on_evaluate(self, args, state, control, **kwargs):
        if not self.training:
            return
        samples = self.draw()
        if not state.is_world_process_zero or not samples:
            return
        state.log_history.append({"step": state.global_step, "samples": [list(sample) for sample in samples]})
        for tracker in self.trackers:
            if (writer := getattr(tracker, "tb_writer", None)) is not None:
                text = "\n\n---\n\n".join(f"{fenced(prompt)}\n\n{fenced(output)}" for prompt, output in samples)
                writer.add_text("samples", text, state.global_step)


class ReportAtSave(TrainerCallback):
    """Evaluate before each regular save and call `report()` after it, on the main process."""

    def __init__(self, report: Callable[[], None]):
        self.report = report

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_save and not control.should_training_stop:
            control.should_evaluate = True

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero and not control.should_training_stop:
            try:
                self.report()
            except Exception:  # the checkpoint is safe, and no report is worth a long run
                logger.warning("the report of step %d could not be written", state.global_step, exc_info=True)
