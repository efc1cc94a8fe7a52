"""Upload of checkpoints to the Hub that have been checked."""

import tempfile
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError

from .checking import OPENING, Report, check
from .folder import published_files, read_folder
from .native import BRANCHES, card_of_two_forms, require_native, write_native


# Files of an earlier upload that are deleted if the new one does not replace them: other shards, other code.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*.py")


class CheckFailed(ValueError):
    """A checkpoint that others could not use, and that was therefore not uploaded.

    Attributes:
        report: what was tried and seen.
    """

    def __init__(self, report: Report):
        names = ", ".join(row.check for row in report.failures)
        reason = f"the check of {names} failed" if names else "its own code was not tried"
        super().__init__(f"not uploaded, for {reason}:\n{report}")
        self.report = report


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload model",
    trust_remote_code: bool = False,
    native: str | None = None,
) -> tuple[Report, CommitInfo]:
    """
    Check the checkpoint in a folder and, if nothing failed, upload it as one commit.

    Args:
        repo_id: `owner/name`; made if it does not exist.
        private: whether a new repository is private; None is the owner's default.
        revision: the branch to upload to, made if it does not exist; `main` if None.
        token: of the Hub; the one of `hf auth login` if None.
        message: of the commit.
        trust_remote_code: try the code in the folder even if it is not the installed package's.
        native: upload the native form as well, with a card that says how to open either: "main" (the native form on
            `main`, this one on `hf_llm`) or "branch" (the native form on `native`, this one on `main`).

    Returns:
        The report, and the commit (with `native`, that on `main`).

    Raises:
        CheckFailed: at least one check failed, or the checkpoint's own code was not tried. Nothing was uploaded, and
            no repository made.
        ValueError: `native`, and no native family expresses the model.
        OSError: the Hub cannot be reached or refuses.
    """
    path = Path(folder)
    if native is not None:
        if native not in BRANCHES:
            raise ValueError(f"`native={native!r}` must be one of {', '.join(map(repr, BRANCHES))}, or None.")
        if revision is not None:
            raise ValueError(
                f"`revision={revision!r}`: with `native`, the branches are {' and '.join(BRANCHES[native])}."
            )
        require_native(path)
    report = check(path, trust_remote_code=trust_remote_code)
    if report.failures or any(row.check == OPENING for row in report.rows):
        raise CheckFailed(report)
    hub = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        forms, card = {revision or "main": path}, None
        if native is not None:
            exported = Path(scratch, "native")
            card = card_of_two_forms(read_folder(path), repo_id, native, write_native(path, exported))
            forms = dict(zip(BRANCHES[native], (exported, path)))
        try:
            repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commits = {
                branch: _upload(hub, forms[branch], repo_id, branch, message, card)
                for branch in sorted(forms, key="main".__eq__)  # last, for its card speaks of the other
            }
        except HTTPError as error:
            raise OSError(f"{repo_id} cannot be published: {error}") from error
    return report, list(commits.values())[-1]


def _upload(hub: HfApi, folder: Path, repo_id: str, branch: str, message: str, card: str | None) -> CommitInfo:
    """One commit of a folder on a branch; `card`: in the place of its README.md."""
    if branch != "main":
        hub.create_branch(repo_id, branch=branch, exist_ok=True)
    files = published_files(folder)
    contents = {name: folder / name for name in files} | ({} if card is None else {"README.md": card.encode()})
    operations = [
        *(CommitOperationAdd(name, content) for name, content in contents.items()),
        *(CommitOperationDelete(name) for name in _stale(hub, repo_id, branch, files)),
    ]
    return hub.create_commit(repo_id, operations, commit_message=message, revision=branch)


def _stale(hub: HfApi, repo_id: str, revision: str | None, files: list[str]) -> list[str]:
    """Files of the repository that an upload of `files` would leave behind to mislead."""
    names = hub.list_repo_files(repo_id, revision=revision)
    others = [name for name in names if "/" not in name and name not in files]
    return [name for name in others if any(fnmatch(name, pattern) for pattern in REPLACED)]
