"""The pretraining Trainer: atomic checkpoints, exact resumption, token-weighted evaluation, real-token throughput."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Trainer

from .optimizers import OptimizerByName
from .saving import AtomicCheckpoints
from .throughput import flops_per_token, peak_flops


DATA_STATE = "data_state.json"


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave torch's generators as they were: what evaluation and sampling draw must not change the run."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


class PretrainTrainer(AtomicCheckpoints, OptimizerByName, Trainer):
    """`Trainer` whose interrupted and resumed run has exactly the weights of an uninterrupted one.

    Args:
        args: a `PretrainingArguments`.
        run_facts: what defines the run, JSON-able; kept in every checkpoint as `run_config.json`.
        row_length: tokens per row, for the FLOP count.
        (others): as in `Trainer`. `train_dataset[n]` must be a pure function of n. If it has `state_dict(consumed)`
            (a stream), its position is kept in every checkpoint as `data_state.json`.
    """

    def __init__(self, *, run_facts: dict, row_length: int, **kwargs):
        super().__init__(**kwargs)
        self.run_facts = run_facts
        self.flops_per_token = flops_per_token(self.model, row_length)
        low = self.args.bf16 or next(self.model.parameters()).dtype == torch.bfloat16
        self.peak_flops = peak_flops(self.args.device, torch.bfloat16 if low else torch.float32)
        self._new_tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._interval = {"start": time.perf_counter(), "tokens": 0}

    # ---- counting --------------------------------------------------------------------------------------------------

    def _run_epoch(self, **kwargs):
        self._interval = {"start": time.perf_counter(), "tokens": self.state.num_input_tokens_seen}
        super()._run_epoch(**kwargs)

    def _track_num_input_tokens(self, inputs):
        for name in ("document_ids", "decoder_document_ids"):
            if name in inputs:
                self._new_tokens += (inputs[name] >= 0).sum()

    def floating_point_ops(self, inputs) -> float:
        return self.flops_per_token * sum(inputs[k].numel() for k in ("input_ids", "decoder_input_ids") if k in inputs)

    def count_tokens(self) -> int:
        """Real (non-padding) tokens trained on so far, over all processes; synchronises them."""
        self.state.num_input_tokens_seen += int(self.accelerator.reduce(self._new_tokens, "sum").item())
        self._new_tokens.zero_()
        return self.state.num_input_tokens_seen

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now, tokens = time.perf_counter(), self.count_tokens()
            seconds = now - self._interval["start"]
            rate = (tokens - self._interval["tokens"]) / seconds
            self._interval = {"start": now, "tokens": tokens}
            previous = next(
                (e["train_seconds"] for e in reversed(self.state.log_history) if "train_seconds" in e), 0.0
            )
            logs |= {"tokens": tokens, "tokens_per_second": rate, "train_seconds": previous + seconds}
            if self.peak_flops:
                logs["mfu"] = rate * self.flops_per_token / (self.peak_flops * self.args.world_size)
        super().log(logs, start_time)

    # ---- the boundary of a step ------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, **kwargs):
        if self.state.global_step == self.state.max_steps:
            self.control.should_log = True  # the last figures are those of the whole run
        pausing = self.control.should_evaluate or self.control.should_save
        start = time.perf_counter()
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)
        if pausing:  # evaluating and saving do not count as training time
            self._interval["start"] += time.perf_counter() - max(start, self._interval["start"])

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """Adds perplexity and bits per byte; the loss is the mean over target tokens, not over batches."""
        self._totals = torch.zeros(3, dtype=torch.float64, device=self.args.device)  # nats, target tokens, bytes
        with preserved_rng():
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        nats, tokens, num_bytes = self.accelerator.reduce(self._totals, "sum").tolist()
        loss = nats / max(tokens, 1)
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(loss, 700.0))
        if num_bytes:
            output.metrics[f"{metric_key_prefix}_bits_per_byte"] = nats / math.log(2) / num_bytes
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = dict(self._prepare_inputs(inputs))
        num_bytes = inputs.pop("num_bytes").sum()
        tokens = (inputs["labels"] != -100).sum()
        with torch.no_grad():  # divided by one item, the loss is a sum in nats
            nats = model(**inputs, num_items_in_batch=torch.ones_like(tokens), skip_logits=True).loss.double()
        self._totals += torch.stack([nats, tokens, num_bytes])
        return nats / tokens.clamp(min=1), None, None

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        self.count_tokens()
        super()._save_checkpoint(model, trial)

    def _save_run_state(self, staged: Path) -> None:
        super()._save_run_state(staged)
        if hasattr(self.train_dataset, "state_dict"):
            consumed = self.state.global_step * self.args.global_batch_size
            state = self.train_dataset.state_dict(consumed)
            (staged / DATA_STATE).write_text(json.dumps(state), encoding="utf-8")
