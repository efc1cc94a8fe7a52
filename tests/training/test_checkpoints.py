"""Atomic publication, detection of torn checkpoints, pruning, the lock on a run."""

import json

import pytest

from hf_llm.manifest import MANIFEST, defect, exclusive
from hf_llm.training import checkpoints


def make(run, step, content=b"weights"):
    staged = checkpoints.staging_dir(run, f"checkpoint-{step}")
    (staged / "inner").mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(content)
    (staged / "inner" / "part").write_bytes(b"part")
    checkpoints.publish(staged, run / f"checkpoint-{step}")
    return run / f"checkpoint-{step}"


def cut(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def point_outside(checkpoint):
    manifest = checkpoint / MANIFEST
    manifest.write_text(manifest.read_text().replace("inner/part", "../part"))


def change(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(bytes(reversed(path.read_bytes())))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "model.safetensors has 6 bytes instead of 7"),
        (change, "model.safetensors has other contents"),
        (lambda c: (c / "inner" / "part").unlink(), "inner/part is missing"),
        (lambda c: (c / MANIFEST).unlink(), "manifest.json is missing"),
        (point_outside, "manifest.json names a file outside the checkpoint: ../part"),
        (lambda c: (c / MANIFEST).write_text("{"), "manifest.json is unreadable"),
    ],
)
def test_a_torn_checkpoint_is_found_out_and_passed_over(damage, reason, tmp_path, caplog):
    good, torn = make(tmp_path, 90), make(tmp_path, 100)
    assert checkpoints.last_good_checkpoint(tmp_path) == torn
    damage(torn)
    assert reason in defect(torn)
    assert checkpoints.last_good_checkpoint(tmp_path) == good
    assert str(torn) in caplog.text and reason in caplog.text


def test_a_checkpoint_that_is_not_finished_is_not_there(tmp_path):
    good = make(tmp_path, 1)
    staged = checkpoints.staging_dir(tmp_path, "checkpoint-2")
    staged.mkdir()
    (staged / "model.safetensors").write_bytes(b"half")
    assert checkpoints.list_checkpoints(tmp_path) == [good]
    checkpoints.clear_staging(tmp_path)
    assert not staged.exists() and checkpoints.last_good_checkpoint(tmp_path) == good


def test_publishing_replaces_a_torn_checkpoint_of_the_same_step(tmp_path):
    cut(make(tmp_path, 3))
    again = make(tmp_path, 3, b"other weights")
    assert defect(again) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-3"]


def test_pruning_keeps_the_newest_whole_ones_and_the_best(tmp_path):
    for step in (1, 2, 3, 10, 20):
        make(tmp_path, step)
    cut(tmp_path / "checkpoint-3")
    checkpoints.prune(tmp_path, None)
    assert len(checkpoints.list_checkpoints(tmp_path)) == 5
    checkpoints.prune(tmp_path, 3, str(tmp_path / "checkpoint-1"))
    assert [checkpoints.checkpoint_step(c) for c in checkpoints.list_checkpoints(tmp_path)] == [1, 10, 20]
    checkpoints.prune(tmp_path, 1)
    assert [c.name for c in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-20"]


def test_a_run_in_use_is_refused(tmp_path):
    with exclusive(tmp_path):
        with pytest.raises(ValueError, match="is in use by another run"), exclusive(tmp_path, 0.0):
            pass
    with exclusive(tmp_path, 0.0):
        pass


def test_the_manifest_lists_every_file(tmp_path):
    files = json.loads((make(tmp_path, 1) / MANIFEST).read_text())["files"]
    assert sorted(files) == ["inner/part", "model.safetensors"] and files["model.safetensors"]["size"] == 7
