"""From a trainer to a finished run: the model, with or without an adapter; train, save, evaluate, report."""

import logging
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from hf_llm.training import runs
from hf_llm.training.evaluation import EveryRowOnce, preserved_rng
from hf_llm.training.resuming import find_checkpoint
from hf_llm.training.saving import AtomicCheckpoints

from .adapters import adapter_callbacks, add_adapter, open_quantised, orthogonality_weighed
from .config import TuningConfig
from .models import is_complete_checkpoint, open_model
from .report import Results, RunFacts, summary_text, write_report


logger = logging.getLogger(__name__)

BASE = "base"  # folder of a run with the model that its adapter is for, where no other checkpoint is that


class TuningMixin(AtomicCheckpoints, EveryRowOnce):
    """What every tuning trainer adds to its class: `class Mine(TuningMixin, SFTTrainer)`.

    Beside atomic checkpoints and exact evaluation losses: the last step is always logged, and each training log has
    `train_seconds` (without evaluation).
    """

    _since: float | None = None

    def evaluation_loop(self, *args, **kwargs):
        start = time.perf_counter()
        with orthogonality_weighed(self.model, 0.0):
            output = super().evaluation_loop(*args, **kwargs)
        if self._since is not None:
            self._since += time.perf_counter() - start
        return output

    def training_step(self, model, inputs, num_items_in_batch=None):
        parts = 1  # of the step, where losses are sums over its items
        if num_items_in_batch is not None:
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            parts = self.current_gradient_accumulation_steps * processes
        with orthogonality_weighed(self.model, 1 / parts):
            return super().training_step(model, inputs, num_items_in_batch)

    def _get_eval_sampler(self, eval_dataset):
        """In order, even where training groups by length: predictions belong to their examples by place."""
        if eval_dataset is None or self.args.world_size > 1:  # accelerate deals the rows out in order
            return None
        return SequentialSampler(eval_dataset)

    def _run_epoch(self, **kwargs):
        self._since = self._since or time.perf_counter()
        super()._run_epoch(**kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self.state.global_step == self.state.max_steps:
            self.control.should_log = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._since is not None:
            now = time.perf_counter()
            earlier = next((e["train_seconds"] for e in reversed(self.state.log_history) if "train_seconds" in e), 0.0)
            logs["train_seconds"] = earlier + now - self._since
            self._since = now
        super().log(logs, start_time)


def training_steps(args: TrainingArguments, num_samples: int) -> int:
    """Optimizer steps of a run over `num_samples` samples."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(num_samples / (args.train_batch_size * args.world_size))
    return math.ceil(args.num_train_epochs * max(math.ceil(batches / args.gradient_accumulation_steps), 1))


def prepare_model(
    config: TuningConfig,
    auto_class: type,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    num_samples: int,
    **fields,
) -> PreTrainedModel | PeftModel:
    """
    The model of a run, and its adapter if there is a `peft` section (see `adapt`).

    Args:
        auto_class: says which head is wanted.
        num_samples: of the training split, for methods that plan over the run.
        fields: of the model's configuration, as the job needs them.

    Raises:
        ValueError: whatever `open_model` and `adapt` refuse.
    """
    set_seed(config.seed)
    model = open_model(config.model, auto_class, tokenizer, **fields)
    saved = config.peft is not None and is_complete_checkpoint(config.model, model)
    return adapt(model, config, tokenizer, args, num_samples, saved)


def adapt(
    model: PreTrainedModel,
    config: TuningConfig,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    num_samples: int,
    saved: bool = False,
) -> PreTrainedModel | PeftModel:
    """
    `model` with the adapter of the `peft` section, or as it is where there is none.

    An adapter names its base. Where the base is no checkpoint of exactly this model (it was imported, got a new head,
    or is a student), it is saved as `base` in the run's directory, so that the adapter opens there.

    Args:
        num_samples: of the training split, for methods that plan over the run.
        saved: whether `model.name_or_path` opens as exactly this model.

    Raises:
        ValueError: an adapter is to be published, or whatever `add_adapter` refuses.
    """
    if config.peft is None:
        return model
    if args.push_to_hub:
        raise ValueError(
            "training.push_to_hub = True needs a whole model, and peft trains an adapter: merge it when the run is "
            "done (hf_llm.tuning.adapters.merge) and use `hf-llm publish`, or upload it with its own `push_to_hub`"
        )
    if not saved:
        base = Path(config.output_dir, BASE).resolve()
        if args.should_save:
            model.save_pretrained(base)
            tokenizer.save_pretrained(base)
        model.config._name_or_path = model.name_or_path = str(base)
    if config.peft["method"] == "qlora":
        model = open_quantised(model)
    return add_adapter(model, config.peft, training_steps(args, num_samples))


def run(
    trainer: Trainer,
    config: TuningConfig,
    evaluate: Callable[[], Results],
    card_template: Path | None = None,
    facts: dict | None = None,
) -> signal.Signals | None:
    """
    Train (from a checkpoint where there is one), save, evaluate, report, and publish if the run is told to.

    Args:
        trainer: with `TuningMixin`.
        config: the run's configuration; beside `facts` it decides whether a checkpoint is of this run.
        evaluate: called on every process when the model is trained and saved.
        card_template: Jinja template of the model card; None writes no card.
        facts: what else must not change when a run goes on, such as the fingerprint of its data.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.
    """
    args = trainer.args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trainer.run_facts = {**config.to_dict(), **(facts or {}), "global_batch_size": batch}
    for callback in adapter_callbacks(config.peft):
        trainer.add_callback(callback)
    stopped = runs.train(trainer, find_checkpoint(Path(config.output_dir), config.resume))
    if stopped is not None:
        return stopped
    trainer.save_final_model()
    with preserved_rng():
        results = evaluate()
    if args.should_save:
        run_facts = RunFacts.of(trainer, config)
        write_report(Path(config.output_dir), run_facts, trainer.state.log_history, results, card_template)
        print(summary_text(Path(config.output_dir), run_facts, results), flush=True)
    if args.push_to_hub:
        trainer.push_to_hub()
    return None


def device_text(args: TrainingArguments) -> str:
    """What a run runs on, in words."""
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    threads = args.world_size * torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"
