"""Checkpoints that are whole or are not there.

A checkpoint is written into a hidden directory, every file is listed with size and SHA-256 in `manifest.json`, all is
flushed to disk, and one rename gives it its name. A directory without a manifest, or one whose files differ from it,
is torn: it is named in a warning and the checkpoint before it is used.
"""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers.trainer_utils import rotate_checkpoints

from ..manifest import defect, flush, write_manifest


logger = logging.getLogger(__name__)

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


def publish(staged: Path, target: Path) -> None:
    """Complete a staged checkpoint and rename it to `target`, replacing a torn one of that name."""
    write_manifest(staged)
    if target.exists():
        discarded = target.with_name(f"{_STAGING}discarded-{target.name}")
        shutil.rmtree(discarded, ignore_errors=True)
        target.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
    staged.rename(target)
    flush(target.parent)


def last_good_checkpoint(run_dir: Path, contents: bool = True) -> Path | None:
    """The newest whole checkpoint of a run; torn ones on the way to it are named in a warning."""
    for checkpoint in reversed(list_checkpoints(run_dir)):
        reason = defect(checkpoint, contents)
        if reason is None:
            return checkpoint
        logger.warning("torn checkpoint %s is not used: %s", checkpoint, reason)
    return None


def prune(run_dir: Path, keep: int | None, best: str | None = None) -> None:
    """Delete torn checkpoints, and the oldest beyond the `keep` newest (None or 0: nothing goes) but `best`."""
    if keep:
        for checkpoint in list_checkpoints(run_dir):
            if defect(checkpoint, contents=False):
                shutil.rmtree(checkpoint, ignore_errors=True)
        rotate_checkpoints(str(run_dir), keep, best)


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
