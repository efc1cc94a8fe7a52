"""Upload of checkpoints to the Hub: the finished ones checked first, those of a run in progress as they come."""

from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HTTPError

from .checking import Report, check
from .folder import NOT_PUBLISHED, published_files


# Files of an earlier upload that are deleted if the new one does not replace them: other shards, other code.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*.py")
REPORT = ("README.md", "*.png", "samples.md")  # what a run writes about itself at each save


class CheckFailed(ValueError):
    """A checkpoint that others could not use, and that was therefore not uploaded.

    Attributes:
        report: what was tried and seen.
    """

    def __init__(self, report: Report):
        names = ", ".join(row.check for row in report.failures)
        super().__init__(f"not uploaded, for the check of {names} failed:\n{report}")
        self.report = report


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload model",
) -> tuple[Report, CommitInfo]:
    """
    Check the checkpoint in a folder and, if nothing failed, upload it as one commit.

    Args:
        repo_id: `owner/name`; made if it does not exist.
        private: whether a new repository is private; None is the owner's default.
        revision: the branch to upload to, made if it does not exist; `main` if None.
        token: of the Hub; the one of `hf auth login` if None.
        message: of the commit.

    Raises:
        CheckFailed: at least one check failed. Nothing was uploaded, and no repository made.
        OSError: the Hub cannot be reached or refuses.
    """
    report = check(folder)
    if report.failures:
        raise CheckFailed(report)
    hub = HfApi(token=token)
    try:
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            ignore_patterns=list(NOT_PUBLISHED),
            delete_patterns=_stale(hub, repo_id, revision, published_files(Path(folder))) or None,
        )
    except HTTPError as error:
        raise OSError(f"{repo_id} cannot be published: {error}") from error
    return report, commit


def _stale(hub: HfApi, repo_id: str, revision: str | None, files: list[str]) -> list[str]:
    """Files of the repository that an upload of `files` would leave behind to mislead."""
    names = hub.list_repo_files(repo_id, revision=revision)
    others = [name for name in names if "/" not in name and name not in files]
    return [name for name in others if any(fnmatch(name, pattern) for pattern in REPLACED)]


def push_in_background(
    checkpoint: str | Path,
    run_dir: str | Path,
    repo_id: str,
    message: str,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> list[Future]:
    """
    Upload the model of a checkpoint of a run in progress, unchecked, and what the run says about itself.

    Returns:
        The two uploads, which run one after the other in the background; `checkpoint` must stay until they are done.
    """
    hub = HfApi(token=token)
    settings = {"repo_id": repo_id, "revision": revision, "commit_message": message, "run_as_future": True}
    return [
        hub.upload_folder(folder_path=checkpoint, ignore_patterns=list(NOT_PUBLISHED), **settings),
        hub.upload_folder(folder_path=run_dir, allow_patterns=list(REPORT), **settings),
    ]
