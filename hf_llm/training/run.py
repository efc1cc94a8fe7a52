"""One run of any job that trains: from checked settings to a saved, evaluated, reported and published model."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from ..imports import import_variants
from ..manifest import exclusive
from ..publishing.pushing import RunPushes
from .arguments import DEFAULTS, MANAGED, check_trackers
from .callbacks import ProgressLine, ReportAtSave, SamplesAtEvaluation, StopOnSignal
from .checkpoints import clear_staging
from .config import RunConfig
from .evaluation import preserved_rng
from .launching import check_launch, set_cpu_threads
from .report import Results, RunFacts, samples_table, summary_text, write_report
from .resuming import check_same_run, find_checkpoint
from .settings import build_section, check_training_fields, describe, load_settings


logger = logging.getLogger(__name__)


class Run:
    """A job on one configuration; a subclass says what the job is.

    It locks `output_dir`, checks the launch, finds the checkpoint to go on from, trains with one progress line until
    the end or a signal, saves, evaluates, writes the report, and pushes to the Hub if the configuration says so.

    A subclass gives `prepare`, `evaluate`, and where needed `facts` and `make_arguments`; and as attributes of the
    class:
        config_class: dataclass of its configuration.
        arguments_class: of its trainer's arguments, which the section `training` holds fields of.
        managed: fields of these that the job sets by itself, beside `MANAGED`, and how to set them instead.
        defaults: of these fields, over `DEFAULTS`.
        reports_at_save: whether each save is evaluated and reported as the end is.

    Attributes:
        config: the configuration.
        card_template: Jinja template of the model card; None writes no card.
        run_dir: `config.output_dir`.
        args: the trainer's arguments.
        checkpoint: folder that the run goes on from, or None.
        trainer: what `prepare` has made.
    """

    config_class: ClassVar[type[RunConfig]]
    arguments_class: ClassVar[type[TrainingArguments]] = TrainingArguments
    managed: ClassVar[dict[str, str]] = {}
    defaults: ClassVar[dict[str, Any]] = {}
    reports_at_save: ClassVar[bool] = False

    # ---- what a job gives -------------------------------------------------------------------------------------------

    def make_arguments(self) -> TrainingArguments:
        """The trainer's arguments. Raises ValueError on values that contradict each other."""
        return self.arguments()

    def prepare(self) -> Trainer:
        """Data, tokenizer, model, and a trainer of them that is a `RunTrainer`.

        Raises:
            ValueError: anything wrong with configuration or data.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What must not change when a run goes on, beside configuration and batch size: the data's fingerprint."""
        return {}

    def evaluate(self) -> Results:
        """The final figures. Called on every process when the model is trained and saved."""
        raise NotImplementedError

    def samples(self) -> list[tuple[str, str]]:
        """Pairs of prompt and output of the model as it is, for `samples_while_training`. Called on every process."""
        raise NotImplementedError

    # ---- settings ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] = ()) -> RunConfig:
        """The configuration that a YAML file and `--section.key value` overrides describe.

        Raises:
            ValueError: unreadable file, malformed override, unknown key, or value of the wrong type.
        """
        return cls.from_dict(load_settings(path, overrides))

    @classmethod
    def from_dict(cls, settings: dict) -> RunConfig:
        """The configuration of nested dicts. Raises ValueError on an unknown key or a value of the wrong type."""
        import_variants(settings.get("imports") or ())
        if isinstance(settings.get("training"), dict):
            check_training_fields(settings["training"], cls.arguments_class, MANAGED | cls.managed)
        if settings.get("samples_while_training") is True and cls.samples is Run.samples:
            raise ValueError(f"samples_while_training = True: {cls.__name__} trains no model that writes text")
        return build_section(cls.config_class, settings)

    @classmethod
    def describe(cls) -> Iterator[str]:
        """Every key of a configuration: name, type, default, what it is for."""
        yield from describe(cls.config_class)
        yield from describe(cls.arguments_class, "training", MANAGED | cls.managed)

    def arguments(self, **settings: Any) -> TrainingArguments:
        """The trainer's arguments: the section `training` over `settings`, `defaults` and `DEFAULTS`."""
        settings = {**DEFAULTS, **self.defaults, **settings, **self.config.training}
        if not torch.accelerator.is_available():
            settings["use_cpu"] = True  # bf16 on a CPU must be asked for in transformers; here there is nothing else
        try:
            args = self.arguments_class(**settings, output_dir=self.config.output_dir, seed=self.config.seed)
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith("training.") else f"training: {text}") from error
        check_trackers(args.report_to)
        return args

    # ---- the run ----------------------------------------------------------------------------------------------------

    def __init__(self, config: RunConfig, card_template: Path | None = None):
        self.config, self.card_template = config, card_template
        self.run_dir = Path(config.output_dir)

    def run(self) -> signal.Signals | None:
        """
        Returns:
            The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

        Raises:
            ValueError: anything wrong with configuration, data, checkpoint or launch, before training starts.
            CheckpointError: a checkpoint could not be written.
            TrainingDiverged: the loss is not finite any more.
        """
        set_cpu_threads(self.config.cpu_threads)
        self.args = self.make_arguments()
        check_launch(self.args)
        disable_progress_bar()  # transformers' bars for loading and saving would break up the one that counts
        with exclusive(self.run_dir) if self.args.should_save else contextlib.nullcontext():
            if self.args.should_save:
                clear_staging(self.run_dir)
            with self.args.main_process_first():  # it waits for a run before this one that is still saving
                self.checkpoint = find_checkpoint(self.run_dir, self.config.resume)
            if self.checkpoint is not None:  # before anything is made that a refused run should not have changed
                check_same_run(self.checkpoint, self.config.to_dict())
            self.trainer = self.prepare()
            return self.train() or self.finish()

    def train(self) -> signal.Signals | None:
        """Train to the end, or until a signal, which is returned. ValueError: the checkpoint is of another run."""
        trainer, args = self.trainer, self.trainer.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        facts = {**self.facts(), "global_batch_size": batch}
        trainer.run_facts = {**self.config.to_dict(), **facts}
        if self.checkpoint is not None:
            check_same_run(self.checkpoint, facts)
            logger.warning("resuming from %s", self.checkpoint)
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        stop = StopOnSignal()
        self.pushes = RunPushes(trainer) if args.push_to_hub else None
        report = ReportAtSave(self.report) if self.reports_at_save else None
        samples = None
        if self.config.samples_while_training:
            samples = SamplesAtEvaluation(self.samples, trainer.callback_handler.callbacks)
        for callback in (None if args.disable_tqdm else ProgressLine(), samples, report, stop, self.pushes):
            if callback is not None:
                trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        if stop.received is not None:
            step = trainer.state.global_step
            self.say(
                f"Stopped by {stop.received.name} at step {step} of {trainer.state.max_steps}; saved "
                f"{self.run_dir}/checkpoint-{step}. The same command goes on from there."
            )
        return stop.received

    def finish(self) -> None:
        """Save the final model, evaluate, report, and publish if the configuration says so."""
        self.trainer.save_final_model()
        self.say(self.report())
        if self.pushes is not None and self.args.should_save:
            self.pushes.finish()

    def report(self) -> str:
        """Evaluate, and write the report on the main process. Returns a summary for the terminal."""
        with preserved_rng():
            results = self.evaluate()
        if shown := samples_table(self.trainer.state.log_history):
            results.tables["Samples while training"] = shown
        facts = RunFacts.of(self.trainer, self.config)
        if self.args.should_save:
            write_report(self.run_dir, facts, self.trainer.state.log_history, results, self.card_template)
        return summary_text(self.run_dir, facts, self.trainer.state.log_history, results)

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.args.should_save:
            print(text, flush=True)
