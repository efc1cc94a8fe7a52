"""The mixin of every run's trainer, and the trainer of pretraining."""

import json
import math
import time
from pathlib import Path

import torch
from transformers import Trainer

from .evaluation import EveryRowOnce, without_rows
from .optimizers import OptimizerByName
from .saving import AtomicCheckpoints
from .throughput import flops_per_token, peak_flops


DATA_STATE = "data_state.json"


class RunTrainer(AtomicCheckpoints, EveryRowOnce):
    """Mixin for the trainer of a `Run`, to be named before it: `class Mine(RunTrainer, SFTTrainer)`.

    Atomic checkpoints; evaluation losses that do not depend on the size of batches; the last step is always logged;
    each training log has `train_seconds`, the time spent on steps, evaluating and saving excluded.
    """

    _timed_from: float | None = None  # start of the interval that the next training log is about

    def _run_epoch(self, **kwargs):
        self._timed_from = self._timed_from or time.perf_counter()
        super()._run_epoch(**kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self.state.global_step == self.state.max_steps:
            self.control.should_log = True  # the last figures are those of the whole run
        pausing = self.control.should_evaluate or self.control.should_save
        start = time.perf_counter()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if pausing:
            self._timed_from += time.perf_counter() - max(start, self._timed_from)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._timed_from is not None:
            now = time.perf_counter()
            self.add_figures(logs, now - self._timed_from)
            self._timed_from = now
        super().log(logs, start_time)

    def add_figures(self, logs: dict[str, float], seconds: float) -> None:
        """Add figures of the `seconds` of training since the last log to a training log."""
        history = reversed(self.state.log_history)
        logs["train_seconds"] = next((e["train_seconds"] for e in history if "train_seconds" in e), 0.0) + seconds


class PretrainTrainer(RunTrainer, OptimizerByName, Trainer):
    """`Trainer` whose interrupted and resumed run has exactly the weights of an uninterrupted one.

    Args:
        args: a `PretrainingArguments`.
        row_length: tokens per row, for the FLOP count.
        (others): as in `Trainer`. `train_dataset[n]` must be a pure function of n. If it has `state_dict(consumed)`
            (a stream), its position is kept in every checkpoint as `data_state.json`.
    """

    def __init__(self, *, row_length: int, **kwargs):
        super().__init__(**kwargs)
        self.flops_per_token = flops_per_token(self.model, row_length)
        low = self.args.bf16 or next(self.model.parameters()).dtype == torch.bfloat16
        self.peak_flops = peak_flops(self.args.device, torch.bfloat16 if low else torch.float32)
        self._trained = torch.zeros((), dtype=torch.int64, device=self.args.device)  # tokens, of this process
        self._received = torch.zeros((), dtype=torch.int64, pin_memory=self.args.device.type == "cuda")  # of all
        self._counted = 0
        self._logged = None  # tokens at the last log

    # ---- counting ---------------------------------------------------------------------------------------------------

    def _track_num_input_tokens(self, inputs):
        for name in ("document_ids", "decoder_document_ids"):
            if name in inputs:
                self._trained += (inputs[name] >= 0).sum()

    def floating_point_ops(self, inputs) -> float:
        return self.flops_per_token * sum(inputs[k].numel() for k in ("input_ids", "decoder_input_ids") if k in inputs)

    def _send_tokens(self) -> None:
        """Start to copy the number of tokens from the accelerator. Whatever waits for the accelerator next, as Trainer
        does for the loss that it logs, has waited for it, too."""
        self._received.copy_(self.accelerator.reduce(self._trained, "sum"), non_blocking=True)

    def _count_tokens(self) -> int:
        """Real (non-padding) tokens trained on so far, over all processes, once they have been received."""
        received = int(self._received.numpy())
        self.state.num_input_tokens_seen += received - self._counted
        self._counted = received
        return self.state.num_input_tokens_seen

    def _run_epoch(self, **kwargs):
        self._logged = self.state.num_input_tokens_seen
        super()._run_epoch(**kwargs)

    def add_figures(self, logs: dict[str, float], seconds: float) -> None:
        tokens = self._count_tokens()
        rate, self._logged = (tokens - self._logged) / seconds, tokens
        logs |= {"tokens": tokens, "tokens_per_second": rate}
        super().add_figures(logs, seconds)
        if self.peak_flops:
            logs["mfu"] = rate * self.flops_per_token / (self.peak_flops * self.args.world_size)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self.control.should_log or self.state.global_step == self.state.max_steps:
            self._send_tokens()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """Adds perplexity and bits per byte.

        Raises:
            ValueError: there are no rows, or no targets in them.
        """
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if f"{metric_key_prefix}_loss" not in output.metrics:
            raise ValueError(f"nothing to evaluate: the {metric_key_prefix} data has no rows")
        loss, (targets, num_bytes) = output.metrics[f"{metric_key_prefix}_loss"], self.further_sums
        output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(loss, 700.0))
        if num_bytes:
            output.metrics[f"{metric_key_prefix}_bits_per_byte"] = loss * targets / math.log(2) / num_bytes
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = dict(self._prepare_inputs(inputs))
        num_bytes, labels = inputs.pop("num_bytes"), inputs["labels"]
        real = self.real_rows(len(labels))
        inputs["labels"] = labels = without_rows(labels, real)
        targets = (labels != -100).sum()
        with torch.no_grad():  # divided by one item, the loss is a sum in nats
            nats = model(
                **inputs, num_items_in_batch=torch.ones_like(targets), skip_logits=True, output_router_logits=False
            ).loss
        self.add_sums(nats, targets, targets, num_bytes[:real].sum())
        return nats / targets.clamp(min=1), None, None

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        self._send_tokens()
        self._trained.item()  # saving waits for the accelerator in any case
        self._count_tokens()
        super()._save_checkpoint(model, trial)

    def _save_run_state(self, staged: Path) -> None:
        super()._save_run_state(staged)
        if hasattr(self.train_dataset, "state_dict"):
            consumed = self.state.global_step * self.args.global_batch_size
            state = self.train_dataset.state_dict(consumed)
            (staged / DATA_STATE).write_text(json.dumps(state), encoding="utf-8")
