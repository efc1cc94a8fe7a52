"""Checkpoints that are whole or are not there.

A checkpoint is written into a hidden directory, every file is listed with size and SHA-256 in `manifest.json`, all is
flushed to disk, and one rename gives it its name. A directory without a manifest, or one whose files differ from it,
is torn: it is named in a warning and the checkpoint before it is used.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_STAGING = ".saving-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message says why and which earlier one is good."""


def checkpoint_step(path: Path) -> int:
    """Optimizer step of a checkpoint directory, from its name."""
    return int(_NAME.fullmatch(Path(path).name).group(1))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """All `checkpoint-N` directories of a run, good or torn, by step."""
    found = [p for p in Path(run_dir).glob("checkpoint-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=checkpoint_step)


def staging_dir(run_dir: Path, name: str) -> Path:
    """Where `name` is put together before `publish` gives it its place."""
    return Path(run_dir) / f"{_STAGING}{name}"


def clear_staging(run_dir: Path) -> None:
    """Remove what a killed run left half written."""
    for leftover in Path(run_dir).glob(f"{_STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_manifest(directory: Path) -> None:
    """List every file below `directory` with its size and SHA-256, and flush all of it to disk."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        files[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
        _flush(path)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for path in (manifest, *(p for p in directory.rglob("*") if p.is_dir()), directory):
        _flush(path)


def publish(staged: Path, target: Path) -> None:
    """Complete a staged checkpoint and rename it to `target`, replacing a torn one of that name."""
    write_manifest(staged)
    if target.exists():
        discarded = target.with_name(f"{_STAGING}discarded-{target.name}")
        shutil.rmtree(discarded, ignore_errors=True)
        target.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
    staged.rename(target)
    _flush(target.parent)


def defect(checkpoint: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None. `contents=False` checks names and sizes only."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is unreadable"
    for name, expected in files.items():
        path = checkpoint / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{MANIFEST} names a file outside the checkpoint: {name}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {expected['size']:,}"
        if contents and _digest(path) != expected["sha256"]:
            return f"{name} has other contents than were written"
    return None


def last_good_checkpoint(run_dir: Path, contents: bool = True) -> Path | None:
    """The newest whole checkpoint of a run; torn ones on the way to it are named in a warning."""
    for checkpoint in reversed(list_checkpoints(run_dir)):
        reason = defect(checkpoint, contents)
        if reason is None:
            return checkpoint
        logger.warning("torn checkpoint %s is not used: %s", checkpoint, reason)
    return None


def prune(run_dir: Path, keep: int | None, keep_also: str | Path | None = None) -> None:
    """Delete the oldest checkpoints beyond the `keep` newest whole ones (None or 0: all are kept) and `keep_also`.

    Torn checkpoints do not count towards `keep` and go as soon as a newer whole one exists.
    """
    if not keep:
        return
    good = 0
    protected = None if keep_also is None else Path(keep_also).resolve()
    for checkpoint in reversed(list_checkpoints(run_dir)):
        if checkpoint.resolve() == protected:
            continue
        if good and (good >= keep or defect(checkpoint, contents=False)):
            shutil.rmtree(checkpoint, ignore_errors=True)
        elif not defect(checkpoint, contents=False):
            good += 1


@contextlib.contextmanager
def saving(run_dir: Path, what: str) -> Iterator[None]:
    """Turn a failure to write (a full disk, lost permissions) into one `CheckpointError`; the staging area is cleared.

    torch reports a full disk as `RuntimeError` and safetensors as an exception of its own, hence the wide net.
    """
    try:
        yield
    except Exception as error:
        clear_staging(run_dir)
        free = shutil.disk_usage(run_dir).free
        good = last_good_checkpoint(run_dir, contents=False)
        raise CheckpointError(
            f"could not save {what} in {run_dir} ({free / 2**20:,.0f} MiB free): {error}. "
            + (f"The last good checkpoint is {good}." if good else "There is no earlier checkpoint.")
        ) from error


@contextlib.contextmanager
def exclusive(run_dir: Path, patience: float = 120.0) -> Iterator[None]:
    """Hold a run directory for this process; wait up to `patience` seconds for one that is still saving.

    Raises:
        ValueError: another process keeps training into `run_dir`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run_dir / ".lock")
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.warning("output_dir = %s is in use by another process; waiting for it to end", run_dir)
            lock.acquire(timeout=patience, poll_interval=0.5)
    except filelock.Timeout:
        raise ValueError(f"output_dir = {run_dir} is in use by another run") from None
    try:
        yield
    finally:
        lock.release()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file or a directory is on disk. Windows flushes what is open for writing, and no directories."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
