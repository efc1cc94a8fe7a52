"""`push_to_hub` of a run: the model of every save as it comes, and the finished one when it has been checked."""

import concurrent.futures
import logging
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy

from .folder import NOT_PUBLISHED
from .hub import publish


logger = logging.getLogger(__name__)

REPORT = ("README.md", "*.png", "samples.md")  # what a run writes about itself at each save


class RunPushes(TrainerCallback):
    """Uploads whole checkpoints in the background, without pickles and with what the run says about itself, and at the
    end a model that passes `hf-llm check`.

    An upload that fails costs a warning, not the run. A save that comes before the last one is uploaded is left out,
    unless `hub_always_push`.

    Raises:
        ValueError: the Hub cannot be reached or refuses, or `hub_strategy` would upload optimizer states.
    """

    def __init__(self, trainer: Trainer):
        self.args, self.repo_id, self.jobs = trainer.args, trainer.hub_model_id, []
        legal = (HubStrategy.END, HubStrategy.EVERY_SAVE)
        if self.args.hub_strategy not in legal:
            raise ValueError(
                f"training.hub_strategy = {self.args.hub_strategy.value!r} would upload optimizer states, which are "
                f"pickles; legal: {', '.join(strategy.value for strategy in legal)}"
            )
        self.hub = HfApi(token=self.args.hub_token)
        if self.args.hub_revision is not None and trainer.is_world_process_zero():
            try:
                self.hub.create_branch(self.repo_id, branch=self.args.hub_revision, exist_ok=True)
            except (OSError, HTTPError) as error:
                raise ValueError(f"training.hub_revision = {self.args.hub_revision!r}: {error}") from error

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or args.hub_strategy == HubStrategy.END:
            return
        if args.hub_always_push or all(job.done() for job in self.jobs):
            try:
                self.jobs.append(self.start(state.global_step))
            except OSError:
                logger.warning("the upload of step %d could not begin", state.global_step, exc_info=True)

    def start(self, step: int) -> concurrent.futures.Future:
        """Upload checkpoint `step` and the report from links to their files, which the run may replace and delete."""
        run_dir = Path(self.args.output_dir)
        copy = Path(tempfile.mkdtemp(prefix=".saving-push-", dir=run_dir))
        skipped = shutil.ignore_patterns(*NOT_PUBLISHED)
        shutil.copytree(run_dir / f"checkpoint-{step}", copy, ignore=skipped, copy_function=_link, dirs_exist_ok=True)
        for path in (path for pattern in REPORT for path in run_dir.glob(pattern)):
            shutil.copy(path, copy)
        job = self.hub.upload_folder(
            folder_path=copy,
            repo_id=self.repo_id,
            revision=self.args.hub_revision,
            commit_message=f"Training in progress, step {step}",
            run_as_future=True,
        )
        job.add_done_callback(_warn)
        job.add_done_callback(lambda _: shutil.rmtree(copy, ignore_errors=True))
        return job

    def finish(self) -> None:
        """
        Check what the run has left in `output_dir` and upload it; on the main process.

        Raises:
            ValueError: the Hub cannot be reached or refuses; or (`CheckFailed`) others could not use the model, and
                nothing was uploaded. The model in `output_dir` is complete in either case.
        """
        args = self.args
        concurrent.futures.wait(self.jobs)
        try:
            report, commit = publish(
                args.output_dir,
                self.repo_id,
                private=args.hub_private_repo,
                revision=args.hub_revision,
                token=args.hub_token,
            )
        except OSError as error:
            raise ValueError(
                f"{error}. The run is complete: upload it with `hf-llm publish {args.output_dir} {self.repo_id}`."
            ) from error
        print(f"{report}\n{commit.commit_url}", flush=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _warn(job: concurrent.futures.Future) -> None:
    if not job.cancelled() and job.exception() is not None:
        logger.warning("an upload to the Hub failed, and the run goes on: %s", job.exception())
