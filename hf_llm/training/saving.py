"""Atomic checkpoints and the stop on a loss that is not finite, for any `Trainer`."""

import json
import math
from pathlib import Path

import torch
from huggingface_hub.errors import HTTPError
from transformers.integrations import TensorBoardCallback

from . import checkpoints


RUN_CONFIG = "run_config.json"


class TrainingDiverged(RuntimeError):
    """Loss or gradient norm is no longer a finite number."""


class AtomicCheckpoints:
    """Mixin for `Trainer` and its subclasses, to be named before them: `class Mine(AtomicCheckpoints, SFTTrainer)`.

    A checkpoint appears in `args.output_dir` when all of it is on disk (see `checkpoints`), torn ones do not count
    towards `args.save_total_limit`, and a loss or gradient norm that is not finite stops the training with
    `TrainingDiverged` before anything is saved. TensorBoard logs go to `runs/` beside the checkpoints, from the first
    evaluation on, be it before the training.

    Attributes:
        run_facts: what defines the run, JSON-able; kept in every checkpoint as `run_config.json`.
    """

    run_facts: dict = {}
    _staged_run_dir: Path | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.logging_dir = callback.logging_dir or str(Path(self.args.output_dir) / "runs")

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, **kwargs):
        if (self.control.should_evaluate or self.control.should_save) and not self.control.should_log:
            self._check_finite(tr_loss, grad_norm)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:  # Trainer has read it from the accelerator already, before it evaluates and saves
            self._check_finite(logs["loss"], logs.get("grad_norm"))
        super().log(logs, *args, **kwargs)

    def _check_finite(self, loss: torch.Tensor | float, grad_norm: torch.Tensor | float | None) -> None:
        norm = 0.0 if grad_norm is None else float(grad_norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        good = checkpoints.last_good_checkpoint(self.args.output_dir, contents=False)
        raise TrainingDiverged(
            f"the loss is not finite at step {self.state.global_step} (gradient norm {norm:.3g}). "
            + (f"The last good checkpoint is {good}. " if good else "There is no checkpoint yet. ")
            + "Lower training.learning_rate or training.max_grad_norm, or lengthen training.warmup_steps."
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in transformers, with a ValueError that names the argument."""
        try:
            super().init_hf_repo(token=token, private=private)
        except (OSError, HTTPError) as error:
            raise ValueError(f"training.push_to_hub = True: {' '.join(str(error).split())}") from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the checkpoint is not whole yet. A `Run` uploads it when it is."""

    def _get_output_dir(self, trial) -> str:
        return str(self._staged_run_dir or super()._get_output_dir(trial))

    def _save_checkpoint(self, model, trial) -> None:
        run_dir, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        with checkpoints.saving(run_dir, name):
            self._staged_run_dir = checkpoints.staging_dir(run_dir, name)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                staged, self._staged_run_dir = self._staged_run_dir / name, None
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(run_dir / name)
            if self.args.should_save:
                self._save_run_state(staged)
                checkpoints.publish(staged, run_dir / name)
                staged.parent.rmdir()
                checkpoints.prune(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _save_run_state(self, staged: Path) -> None:
        """Add what else resuming needs to a checkpoint that is not published yet."""
        (staged / RUN_CONFIG).write_text(json.dumps(self.run_facts, indent=2), encoding="utf-8")
        self.state.save_to_json(str(staged / "trainer_state.json"))  # with the published name of the best checkpoint

    def _save(self, output_dir=None, state_dict=None) -> None:
        config = self.model.config
        use_cache = getattr(config, "use_cache", None)
        if use_cache is not None:
            config.use_cache = True  # the saved model generates with a cache, whatever training chose
        try:
            super()._save(output_dir, state_dict)
        finally:
            if use_cache is not None:
                config.use_cache = use_cache
        # Trainer's pickle of its arguments: nothing here reads it, and nobody should have to open it
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def save_final_model(self) -> None:
        """Put model, tokenizer and configuration into `output_dir` itself; each file appears whole."""
        run_dir = Path(self.args.output_dir)
        staged = checkpoints.staging_dir(run_dir, "model")
        if self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        with checkpoints.saving(run_dir, "the final model"):
            self.save_model(str(staged), _internal_call=True)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for path in staged.iterdir():
                    path.replace(run_dir / path.name)
                staged.rmdir()
        self.accelerator.wait_for_everyone()
