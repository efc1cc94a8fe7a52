"""`push_to_hub` of a run: the model of every save as it comes, and the finished one when it has been checked."""

import logging
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HTTPError
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress


logger = logging.getLogger(__name__)


class CheckedPushes:
    """Mixin for `Trainer`: nothing is uploaded but whole checkpoints, without pickles, and at the end a model that
    passes `hf-llm check`.

    Trainer itself would upload a checkpoint while it is being put together, its arguments as a pickle beside it, and
    at the end a model card of its own in the place of the run's.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in transformers, with an error that names the argument.

        Raises:
            ValueError: the Hub cannot be reached or refuses, or `hub_strategy` would upload optimizer states.
        """
        legal = (HubStrategy.END, HubStrategy.EVERY_SAVE)
        if self.args.hub_strategy not in legal:
            raise ValueError(
                f"training.hub_strategy = {self.args.hub_strategy.value!r} would upload optimizer states, which are "
                f"pickles; legal: {', '.join(strategy.value for strategy in legal)}"
            )
        try:
            super().init_hf_repo(token=token, private=private)
            if self.args.hub_revision is not None and self.is_world_process_zero():
                hub = HfApi(token=token or self.args.hub_token)
                hub.create_branch(self.hub_model_id, branch=self.args.hub_revision, exist_ok=True)
        except (OSError, HTTPError) as error:
            raise ValueError(f"training.push_to_hub = True: {' '.join(str(error).split())}") from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing yet: `PushAtSave` uploads the checkpoint when it is whole and the report of its step is written."""

    @property
    def is_pushing(self) -> bool:
        """Whether a checkpoint is being uploaded, and must stay."""
        push = getattr(self, "push_in_progress", None)
        return push is not None and not push.is_done()

    def push_to_hub(
        self,
        commit_message: str = "Upload model",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | None:
        """
        Check what the run has left in `output_dir` and upload it, on the main process; the others get None.

        Raises:
            ValueError: the Hub cannot be reached or refuses; or (`CheckFailed`) others could not use the model, and
                nothing was uploaded. The model in `output_dir` is complete in either case.
        """
        from hf_llm.publishing import publish

        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self._finish_current_push()
        try:
            report, commit = publish(
                self.args.output_dir,
                self.hub_model_id,
                private=self.args.hub_private_repo if private is None else private,
                revision=revision or self.args.hub_revision,
                token=token or self.args.hub_token,
                message=commit_message,
            )
        except OSError as error:
            raise ValueError(
                f"{error}. The run is complete: upload it with `hf-llm publish {self.args.output_dir} "
                f"{self.hub_model_id}`."
            ) from error
        print(f"{report}\n{commit.commit_url}", flush=True)
        return commit


class PushAtSave(TrainerCallback):
    """Uploads the model of each checkpoint in the background, with what the run says about itself at that step.

    An upload that fails costs a warning, not the run. A save that comes before the last one is uploaded is left out,
    unless `hub_always_push`.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        from hf_llm.publishing.hub import push_in_background

        if not state.is_world_process_zero or args.hub_strategy == HubStrategy.END:
            return
        if self.trainer.is_pushing and not args.hub_always_push:
            return
        jobs = push_in_background(
            Path(args.output_dir, f"checkpoint-{state.global_step}"),
            args.output_dir,
            self.trainer.hub_model_id,
            f"Training in progress, step {state.global_step}",
            revision=args.hub_revision,
            token=args.hub_token,
        )
        for job in jobs:
            job.add_done_callback(_warn)
        earlier = self.trainer.push_in_progress.jobs if self.trainer.is_pushing else []
        self.trainer.push_in_progress = PushInProgress([*earlier, *jobs])


def _warn(job) -> None:
    if not job.cancelled() and job.exception() is not None:
        logger.warning("an upload to the Hub failed, and the run goes on: %s", job.exception())
