"""Evaluation losses that depend neither on the size of batches nor on the number of processes."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate.utils import slice_tensors
from transformers.trainer_pt_utils import find_batch_size


IGNORED = -100  # label of a position without a target


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave torch's generators as they were: what evaluation and sampling draw must not change the run."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


class EveryRowOnce:
    """Mixin for `Trainer`: the evaluation loss is the summed loss of all targets, divided by their number.

    Trainer averages the means of the batches, so that a target weighs more in a batch with few targets, and counts
    the rows that accelerate repeats to fill the last batches of several processes. A loss without integer labels is
    averaged over rows. Repeated rows are left out, except where a collator changes the number of rows (TRL's pairs,
    `padding_free`).
    """

    _sums: list | None = None  # a tensor for each batch of an evaluation: loss, targets, and what a trainer adds

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in Trainer, with `<prefix>_loss` by targets.

        Raises:
            ValueError: there are rows, but no targets.
        """
        self._sums = []
        with preserved_rng():
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        if self._sums:
            sums = torch.stack(self._sums).cpu().double().sum(0)
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()
            loss, targets, *self.further_sums = sums.tolist()
            if not targets:
                raise ValueError(
                    f"nothing to evaluate: the {output.num_samples} rows of the {metric_key_prefix} data have no "
                    "targets (labels other than -100)"
                )
            output.metrics[f"{metric_key_prefix}_loss"] = loss / targets
        self._sums = None
        return output

    def add_sums(self, *sums: torch.Tensor | float) -> None:
        """Count a batch: its summed loss, its number of targets, and figures whose sums become `further_sums`."""
        if self._sums is not None:
            self._sums.append(torch.stack([torch.as_tensor(x, device=self.args.device).float() for x in sums]))

    def real_rows(self, rows: int) -> int | None:
        """How many rows of this process's last batch accelerate has not repeated; None if that is all of them."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return None
        return min(max(state.remainder - self.accelerator.process_index * rows, 0), rows)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        labels, rows = inputs.get("labels"), find_batch_size(inputs) or 1
        by_target = torch.is_tensor(labels) and not labels.is_floating_point()
        real = self.real_rows(rows) if rows == self.args.eval_batch_size else None
        if real is not None and by_target:
            labels = without_rows(labels, real)
            inputs = {**inputs, "labels": labels}
        result = super().compute_loss(model, inputs, return_outputs)  # a mean over this batch alone
        loss = result[0] if return_outputs else result
        if real is not None and not by_target:  # by all processes, for a sharded model has to run on each
            loss = super().compute_loss(model, slice_tensors(inputs, slice(max(real, 1))))
        count = rows if real is None else real
        if by_target:
            count = ((labels[..., 1:] if self._loss_shifts_labels else labels) != IGNORED).sum()
        self.add_sums(loss.detach().mean() * count, count)
        return result


def without_rows(labels: torch.Tensor, real: int | None) -> torch.Tensor:
    """Labels (batch, ...) with rows from `real` on ignored; unchanged if it is None."""
    if real is None:
        return labels
    return torch.cat([labels[:real], torch.full_like(labels[real:], IGNORED)])
