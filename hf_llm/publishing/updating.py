"""`hf-llm update`: replaces the code that a checkpoint carries by the installed package's; weights stay."""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError
from packaging.version import InvalidVersion, Version

from ..manifest import MANIFEST, exclusive
from ..models.common import VERSION, auto_map
from .checking import FAILED, Report, inspect, run_bare
from .code import entry_files, foreign_variant, imported_files, installed_code, variant_files
from .folder import Folder, read_folder


CONCERNED = (
    "configuration",
    "auto_map",
    "version",
    "code",
    "known faults",
    "tested with",
)  # rows that an update can change


@dataclass(frozen=True)
class Update:
    """What an update did.

    Attributes:
        report: the code and configuration that the checkpoint has now, as they were checked before they got there.
        changed: names of the files that were replaced, added or removed; none if the checkpoint had this code.
        commit: of a repository, unless nothing changed.
    """

    report: Report
    changed: list[str]
    commit: CommitInfo | None = None

    def __str__(self) -> str:
        done = f"{len(self.changed)} files changed: {', '.join(self.changed)}" if self.changed else "nothing to change"
        return "\n".join((str(self.report), done, *([self.commit.commit_url] if self.commit else ())))


def update(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Update:
    """
    Replace the code of a checkpoint, and what config.json says of it, by the installed package's.

    All of it is tried on the checkpoint's configuration first, in a process without hf_llm. The files then change
    together: whenever this is interrupted, the folder has the earlier code or the new one (where the file system
    cannot exchange folders, file by file). In a repository they change in one commit; weights are not fetched.

    Args:
        source: a folder, or a repository of the Hub.
        revision: the branch of a repository; `main` if None.
        token: of the Hub; the one of `hf auth login` if None.

    Raises:
        ValueError: it is no checkpoint of hf_llm, a newer version wrote it, or the result failed. Nothing has changed.
        OSError: a file cannot be written, or the Hub cannot be reached or refuses.
    """
    if Path(source).is_dir():
        path = Path(source).resolve()
        report, files = _renewed(path, str(source))
        if files:
            _exchange_files(path, files)
        return Update(report, sorted(files))
    try:
        return _update_repository(str(source), revision, HfApi(token=token))
    except HTTPError as error:
        raise OSError(f"{source} cannot be updated: {error}") from error


def _update_repository(repo_id: str, revision: str | None, hub: HfApi) -> Update:
    found = hub.model_info(repo_id, revision=revision)
    names = [file.rfilename for file in found.siblings if "/" not in file.rfilename]
    wanted = [n for n in names if n.endswith(".py") or n in ("config.json", "adapter_config.json")]
    with tempfile.TemporaryDirectory() as folder:
        hub.snapshot_download(repo_id, revision=found.sha, allow_patterns=wanted, local_dir=folder)
        report, files = _renewed(Path(folder), repo_id)
    if not files:
        return Update(report, [])
    operations = [
        CommitOperationDelete(name) if content is None else CommitOperationAdd(name, content)
        for name, content in files.items()
    ]
    message = f"Code of hf_llm {VERSION}"
    # the Hub refuses the commit if somebody else's came in between
    settings = {"commit_message": message, "revision": revision, "parent_commit": found.sha}
    return Update(report, sorted(files), hub.create_commit(repo_id, operations, **settings))


def _renewed(path: Path, source: str) -> tuple[Report, dict[str, bytes | None]]:
    """The report on a checkpoint with the installed code, and the files that this changes (None: to be removed)."""
    try:
        folder = read_folder(path)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    written = folder.config.get("hf_llm_version")
    try:
        newer = Version(str(written)) > Version(VERSION)
    except InvalidVersion:  # no version at all is one of the things that an update mends
        newer = False
    if newer:
        raise ValueError(
            f"{source} was written by hf_llm {written}, newer than the installed {VERSION}: upgrade hf_llm."
        )
    if (name := foreign_variant(path, folder.config)) is not None:
        raise ValueError(f"{source} carries {name}, which would be run: import it, or its copy there, by --imports.")
    files = _new_files(folder)
    with tempfile.TemporaryDirectory() as trial:
        for name in ("config.json", *installed_code(folder.config), *variant_files(folder.config)):
            Path(trial, name).write_bytes(files.get(name) or (path / name).read_bytes())
        rows = [row for row in inspect(Path(trial)) if row.check in CONCERNED]
        if not any(row.result == FAILED for row in rows):
            rows += run_bare([trial], weights=False)[0]
    report = Report(source, rows)
    if report.failures:
        raise ValueError(f"{source} is not updated, for its configuration does not work with this code:\n{report}")
    return report, files


def _new_files(folder: Folder) -> dict[str, bytes | None]:
    """The files that differ between a checkpoint and the same with the installed code."""
    code, found = installed_code(folder.config), folder.config.get("auto_map", {})
    kept = {name: target for name, target in found.items() if not name.startswith(("AutoConfig", "AutoModel"))}
    config = {**folder.config, "auto_map": kept | auto_map(folder.stack), "hf_llm_version": VERSION}
    files = dict(code)
    if config != folder.config:
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    old = {name: folder.path / name for name in files}
    files = {n: content for n, content in files.items() if not old[n].is_file() or old[n].read_bytes() != content}
    kept_files = {*code, *variant_files(folder.config), *imported_files(folder.path, entry_files(kept))}
    stale = imported_files(folder.path, entry_files(found)) - kept_files
    return files | dict.fromkeys(stale)


# ---- files that change together -------------------------------------------------------------------------------------


def _exchange_files(folder: Path, files: dict[str, bytes | None]) -> None:
    """Change files of a folder, all at once.

    A second folder, with links to the files that stay, takes the place of the first while its files change one after
    the other. Then the first comes back: it is the working directory of somebody, and may have files that came since.
    """
    files = _with_manifest(folder, files)
    with exclusive(folder, patience=0.0) if (folder / ".lock").exists() else nullcontext():  # a run saves into it
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.update-") as other:
                shutil.copytree(folder, other, symlinks=True, copy_function=os.link, dirs_exist_ok=True)
                _put(Path(other), files)
                _exchange(other, folder)
                _put(Path(other), files)
                _exchange(other, folder)
        except (OSError, AttributeError):  # no links, no exchange, no place beside the folder
            _put(folder, files)


def _with_manifest(folder: Path, files: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """`files` and, if the folder has a manifest, that with their sizes and hashes."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return files
    content = json.loads(manifest.read_text(encoding="utf-8"))
    for name, data in files.items():
        content["files"].pop(name, None)
        if data is not None:
            content["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {**files, MANIFEST: json.dumps(content, indent=1).encode()}


def _put(folder: Path, files: dict[str, bytes | None]) -> None:
    """Change files of a folder, each at once, when all have been written beside them."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".update-") as staged:
        for name, content in files.items():
            if content is not None:
                with open(Path(staged, name), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for name, content in files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                os.replace(Path(staged, name), folder / name)


def _exchange(one: str | Path, other: str | Path) -> None:
    """Exchange two folders at once. Raises OSError where the system or the file system cannot."""
    if sys.platform not in ("linux", "darwin"):
        raise OSError("this system cannot exchange folders")
    library, paths = ctypes.CDLL(None, use_errno=True), (os.fsencode(one), os.fsencode(other))
    if sys.platform == "darwin":
        failed = library.renamex_np(*paths, 2)  # RENAME_SWAP
    else:
        failed = library.renameat2(-100, paths[0], -100, paths[1], 2)  # AT_FDCWD, RENAME_EXCHANGE
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
