"""Folders that are whole or can be told from whole ones: a manifest of sizes and SHA-256; and a lock on a folder."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def write_manifest(directory: Path) -> None:
    """List every file below `directory` with its size and SHA-256, and flush all of it to disk."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        files[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": _digest(path)}
        flush(path)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for path in (manifest, *(p for p in directory.rglob("*") if p.is_dir()), directory):
        flush(path)


def defect(directory: Path, contents: bool = True) -> str | None:
    """How a directory differs from its manifest, or None. `contents=False` checks names and sizes only."""
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is unreadable"
    for name, expected in files.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{MANIFEST} names a file outside the checkpoint: {name}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {expected['size']:,}"
        if contents and _digest(path) != expected["sha256"]:
            return f"{name} has other contents than were written"
    return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file or a directory is on disk. Windows flushes what is open for writing, and no directories."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(directory: Path, patience: float = 120.0) -> Iterator[None]:
    """Hold a run's directory for this process; wait up to `patience` seconds for one that is still saving.

    A directory that is new, and in which nothing was written, is removed again.

    Raises:
        ValueError: the directory cannot be written, or another process keeps training into it.
    """
    lock, is_new = filelock.FileLock(directory / ".lock"), not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.warning("output_dir = %s is in use by another process; waiting for it to end", directory)
            lock.acquire(timeout=patience, poll_interval=0.5)
    except filelock.Timeout:
        raise ValueError(f"output_dir = {directory} is in use by another run") from None
    except OSError as error:
        raise ValueError(f"output_dir = {directory} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
        if is_new and {path.name for path in directory.iterdir()} <= {".lock"}:
            shutil.rmtree(directory)
