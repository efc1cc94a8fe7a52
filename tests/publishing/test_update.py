"""`hf-llm update`: newer code, the same weights, all at once or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from golden.make import ROOT
from golden.reopen import reopen

import hf_llm_cli as cli
from hf_llm import __version__
from hf_llm.manifest import defect, write_manifest
from hf_llm.publishing import Row, update, updating
from hf_llm.publishing.checking import FAILED
from hf_llm.publishing.code import installed_code


@pytest.fixture
def old(tmp_path) -> Path:
    """The golden decoder of 0.1.0 with its code, a file of it that newer code does not have, and another's files."""
    folder = shutil.copytree(ROOT / "v0.1.0" / "decoder", tmp_path / "model")
    shutil.copytree(ROOT / "v0.1.0" / "code", folder, dirs_exist_ok=True)
    (folder / "norms.py").write_text((folder / "norms.py").read_text() + "\n\nfrom .older import THING\n")
    (folder / "masks.py").write_bytes(b"\xff damaged")
    (folder / "older.py").write_text("from .../../neighbour import y\nTHING = 1\n")
    (tmp_path / "neighbour.py").write_text("y = 1\n")
    (folder / "mine.py").write_text("raise SystemExit\n")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_bytes(b"x")
    write_manifest(folder)
    return folder


@pytest.fixture
def untried(monkeypatch):
    """The process without hf_llm is left out: another test has it."""
    monkeypatch.setattr("hf_llm.publishing.updating.run_bare", lambda sources, weights: [[]])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_updated(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    config = json.loads(after["config.json"])
    code = installed_code(config)
    assert {name: after[name] for name in code} == code and "older.py" not in after and "mine.py" in after
    assert config == json.loads(before["config.json"]) | {"hf_llm_version": __version__}
    earlier = {path.name for path in (ROOT / "v0.1.0" / "code").iterdir()}
    others = set(before) - {*code, *earlier, "older.py", "manifest.json", "config.json"}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}


def test_the_code_of_a_folder_is_replaced_and_the_weights_stay(old, capsys):
    before, inode = contents(old), (old.stat().st_ino, (old / "model.safetensors").stat().st_ino)
    cli.main(["update", str(old)])
    assert_updated(before, contents(old))
    assert inode == (old.stat().st_ino, (old / "model.safetensors").stat().st_ino)
    assert defect(old) is None and reopen(old)[1] < 1e-5
    assert {path.name for path in old.parent.iterdir()} == {"model", "neighbour.py"}
    table = capsys.readouterr().out
    assert "LLMDecoderForCausalLM, without weights" in table and "compat.py" in table.splitlines()[-1]


def test_what_is_up_to_date_stays(old, untried):
    update(old)
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    assert update(old).changed == [] and before == {path: path.stat().st_mtime_ns for path in old.rglob("*")}


def test_auto_map_and_version_are_renewed(old, untried):
    config = json.loads((old / "config.json").read_text())
    tokenizer = {"AutoTokenizer": ["mine.Mine", None]}
    earlier = {"auto_map": {"AutoModelForGone": "older.Gone", **tokenizer}, "hf_llm_version": "0.0.9"}
    (old / "config.json").write_text(json.dumps(config | earlier))
    assert "config.json" in update(old).changed
    renewed = json.loads((old / "config.json").read_text())
    as_now = {"auto_map": config["auto_map"] | tokenizer, "hf_llm_version": __version__}
    assert renewed == config | as_now and not (old / "older.py").exists()


NEW = {"a.py": b"new", "b.py": b"new", "c.py": None, "d.py": b"new"}


def _update_until_killed(folder: Path, last: int) -> None:
    """Ends the process: before the step of that number, with 9, or when the update is done, with 0."""
    steps = iter(range(last))

    def until_killed(function):
        return lambda *arguments: function(*arguments) if next(steps, None) is not None else os._exit(9)

    os.replace, updating._exchange = until_killed(os.replace), until_killed(updating._exchange)
    try:
        updating._exchange_files(folder, NEW)
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_leaves_a_whole_checkpoint(tmp_path):
    """Every rename, removal and exchange is once the moment in which the process ends."""
    try:
        updating._exchange(*(tempfile.mkdtemp(dir=tmp_path) for _ in range(2)))
    except OSError:
        pytest.skip("needs a file system that can exchange folders")
    earlier = {"a.py": b"old", "b.py": b"old", "c.py": b"old", "model.safetensors": b"weights"}
    later = {name: content for name, content in (earlier | NEW).items() if content is not None}
    seen = []
    for last in range(99):
        folder = tmp_path / str(last) / "model"
        folder.mkdir(parents=True)
        for name, content in earlier.items():
            (folder / name).write_bytes(content)
        if (child := os.fork()) == 0:
            _update_until_killed(folder, last)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen.append({n: c for n, c in contents(folder).items() if not n.startswith(".")})
        assert seen[-1] in (earlier, later), last
        if not killed:
            break
    assert seen[0] == earlier and seen[-1] == later and len(seen) == 3 + 1 + 3 + 1 + 1


def test_where_folders_cannot_be_exchanged_files_are_replaced_one_by_one(old, untried, monkeypatch):
    def refuse(*paths):
        raise OSError("not on this file system")

    monkeypatch.setattr(updating, "_exchange", refuse)
    before = contents(old)
    update(old)
    assert_updated(before, contents(old))
    assert {path.name for path in old.parent.iterdir()} == {"model", "neighbour.py"} and defect(old) is None


@pytest.mark.parametrize(
    "name, content, message",
    (
        ("config.json", {"model_type": "llama"}, "model: `model_type='llama'` is none of hf_llm"),
        ("config.json", {"hf_llm_version": "99.0.0"}, "was written by hf_llm 99.0.0, newer than the installed"),
        ("config.json", {"num_hidden_layers": "many"}, "is not updated, for its configuration does not work"),
        ("adapter_config.json", {}, "an adapter alone"),
    ),
)
def test_what_cannot_be_updated_stays_as_it_is(name, content, message, old, monkeypatch):
    failed = [[Row("AutoConfig", FAILED, "ValueError")]]
    monkeypatch.setattr("hf_llm.publishing.updating.run_bare", lambda sources, weights: failed)
    config = json.loads((old / "config.json").read_text())
    (old / name).write_text(json.dumps(config | content))
    before = contents(old)
    with pytest.raises(ValueError, match=message):
        update(old)
    assert contents(old) == before


def test_a_repository_gets_one_commit_and_its_weights_are_not_read(old, hub, untried, monkeypatch):
    before = contents(old)
    hub.repositories["me/model"] = {"main": {}, "next": {n: c for n, c in before.items() if "/" not in n}}
    done = update("me/model", revision="next")
    assert hub.commits == [("me/model", "next", f"Code of hf_llm {__version__}")]
    assert "compat.py" in done.changed and str(done).endswith(done.commit.commit_url)
    assert_updated(hub.files("me/model", "next"), hub.files("me/model", "next"))
    assert "config.json" in hub.fetched and not {"model.safetensors", "golden.safetensors"} & hub.fetched
    assert update("me/model", revision="next").commit is None and len(hub.commits) == 1


def test_a_repository_that_changes_meanwhile_or_is_not_there_is_an_error_of_the_hub(old, hub, monkeypatch):
    hub.repositories["me/model"] = {"main": {n: c for n, c in contents(old).items() if "/" not in n}}

    def meanwhile(sources, weights):
        hub.files("me/model")["README.md"] = b"another's"
        return [[]]

    monkeypatch.setattr("hf_llm.publishing.updating.run_bare", meanwhile)
    for repository in ("me/model", "me/nothing"):
        with pytest.raises(OSError, match=f"{repository} cannot be updated"):
            update(repository)
    assert hub.files("me/model")["norms.py"] == (old / "norms.py").read_bytes() and not hub.commits
