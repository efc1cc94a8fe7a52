"""`hf-llm publish` and `push_to_hub`, against a stub of the Hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import hf_llm_cli as cli
from hf_llm.models.common import auto_map
from hf_llm.publishing import CheckFailed, Report, Row, publish
from hf_llm.publishing.folder import published_files
from hf_llm.training.checkpoints import list_checkpoints
from hf_llm.training.pretraining import Pretraining, pretrain
from hf_llm.tuning.finetuning import Finetuning

from .conftest import REPOSITORY, save_checkpoint
from .hub_stub import HubStub


TEMPLATE = REPOSITORY / "model_cards" / "template.md"
TUNING_TEMPLATE = TEMPLATE


def test_what_is_uploaded(decoder, hub, passing, tmp_path):
    """What makes up the model, in one commit, and nothing of what a run keeps for itself."""
    folder = shutil.copytree(decoder, tmp_path / "model")
    own = (
        "checkpoint-2/optimizer.pt",
        "runs/events",
        "tokenizer/tokenizer.json",
        ".lock",
        "manifest.json",
        "optimizer.pt",
    )
    for name in own:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    _, commit = publish(folder, "me/model", private=True)
    assert hub.private == {"me/model": True}
    assert hub.commits == [("me/model", "main", "Upload model")] and hub.url in commit.commit_url
    files = hub.files("me/model")
    assert files == {path.name: path.read_bytes() for path in decoder.iterdir()}
    assert {"model.safetensors", "config.json", "decoder.py", "README.md", "tokenizer.json"} <= set(files)


def test_an_upload_replaces_an_earlier_one(decoder, hub, passing, tmp_path):
    """Shards and code that the new model does not have go; what somebody else put there stays."""
    folder = shutil.copytree(decoder, tmp_path / "model")
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "older.py", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"other")
    publish(folder, "me/model")
    publish(decoder, "me/model")
    assert set(hub.files("me/model")) == {*published_files(decoder), "notes.txt", "onnx/model.safetensors"}
    publish(folder, "me/model", revision="next")
    assert set(hub.files("me/model", "next")) == set(published_files(folder))
    assert "older.py" not in hub.files("me/model")


def test_what_fails_the_check_is_not_uploaded(decoder, hub, tmp_path):
    folder = shutil.copytree(decoder, tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckFailed, match="not uploaded, for the check of weights failed"):
        publish(folder, "me/model")
    assert hub.repositories == {}


def test_what_was_not_tried_is_not_uploaded(decoder, hub, monkeypatch):
    monkeypatch.setattr("hf_llm.publishing.checking.check_export", lambda folder: "not tried")
    monkeypatch.setattr("hf_llm.publishing.checking.foreign_code", lambda *arguments: "mine")
    with pytest.raises(
        CheckFailed, match="not uploaded, for its own code was not tried.*\n(.*\n)*.*--trust-remote-code"
    ):
        publish(decoder, "me/model")
    assert hub.repositories == {}
    monkeypatch.setattr("hf_llm.publishing.checking.run_bare", lambda *sources: [[]])
    cli.main(["publish", str(decoder), "me/model", "--trust-remote-code"])
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    "flag, native, ours", (("--native", "main", "hf_llm"), ("--native-on-branch", "native", "main"))
)
def test_both_forms_are_published(flag, native, ours, decoder, hub, passing, tmp_path):
    """The native one opens without remote code and computes the same; both cards say how either is opened."""
    folder = shutil.copytree(decoder, tmp_path / "model")
    (folder / "loss_curve.png").write_bytes(b"png")
    for _ in range(2):
        cli.main(["publish", str(folder), "me/model", flag])
    found = hub.files("me/model", native)
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "loss_curve.png"} <= set(
        found
    )
    assert json.loads(found["config.json"])["model_type"] == "qwen3" and not [n for n in found if n.endswith(".py")]
    card = found["README.md"].decode()
    assert hub.files("me/model", ours) == {n: (folder / n).read_bytes() for n in published_files(folder)} | {
        "README.md": found["README.md"]
    }
    assert card.count("## Two forms") == 1 and card.startswith((folder / "README.md").read_text().rstrip())
    options = {"main": "", "hf_llm": ', revision="hf_llm"', "native": ', revision="native"'}
    for branch, more in ((native, ""), (ours, ", trust_remote_code=True")):
        assert f"`{branch}` |" in card
        assert f'`AutoModelForCausalLM.from_pretrained("me/model"{options[branch]}{more})`' in card
    exported = tmp_path / "native"
    exported.mkdir()
    for name, content in found.items():
        (exported / name).write_bytes(content)
    ids = torch.tensor([[5, 6, 7]])
    opened, own = (AutoModelForCausalLM.from_pretrained(path) for path in (exported, folder))
    assert type(opened).__name__ == "Qwen3ForCausalLM"
    torch.testing.assert_close(opened(ids).logits, own(ids).logits)


def test_a_later_upload_of_two_forms_replaces_what_was_on_main(decoder, hub, passing):
    publish(decoder, "me/model")
    publish(decoder, "me/model", native="main")
    assert [branch for _, branch, _ in hub.commits] == ["main", "hf_llm", "main"]
    assert not [name for name in hub.files("me/model") if name.endswith(".py")]


@pytest.mark.parametrize(
    "settings, message",
    (
        ({"native": "main"}, "has no native form.*\n(.*\n)*.*`position_embedding"),
        ({"native": "both"}, "`native='both'` must be one of 'main', 'branch'"),
        ({"native": "main", "revision": "v2"}, "`revision='v2'`: with `native`, the branches are main and hf_llm"),
    ),
)
def test_two_forms_that_cannot_be_are_refused(settings, message, hub, tmp_path):
    folder = save_checkpoint(tmp_path / "model", "decoder", position_embedding="relative_bias", num_experts=4)
    with pytest.raises(ValueError, match=message):
        publish(folder, "me/model", **settings)
    assert hub.repositories == {}


def test_a_hub_that_refuses_is_an_error_of_one_line(decoder, hub, passing, monkeypatch):
    with pytest.raises(OSError, match="me/model cannot be published"), monkeypatch.context() as context:
        context.setenv("HF_TOKEN", "another")
        publish(decoder, "me/model")
    hub.refuse_commits = True
    with pytest.raises(OSError, match="me/model cannot be published"):
        publish(decoder, "me/model")
    hub.server_close()
    hub.shutdown()
    with pytest.raises(OSError, match="me/model cannot be published"):
        publish(decoder, "me/model")


@pytest.mark.slow
@pytest.mark.parametrize("stack", ("decoder", "encoder", "encoder_decoder"))
def test_a_published_model_opens_by_its_id_where_there_is_no_hf_llm(stack, hf_llm_command, tmp_path):
    """Every head, with code fetched file by file."""
    folder = save_checkpoint(tmp_path / stack, stack)
    with HubStub() as hub:
        run = hf_llm_command("publish", folder, f"me/{stack}", **hub.environment(tmp_path / "author"))
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.splitlines()[-1].startswith(f"{hub.url}/me/{stack}/commit/")
        run = hf_llm_command("check", f"me/{stack}", "--json", **hub.environment(tmp_path / "user"))
        assert run.returncode == 0, run.stdout + run.stderr
    rows = {row["check"]: row["result"] for row in json.loads(run.stdout)["rows"]}
    assert {rows[name] for name in auto_map(stack)} == {"passed"}
    assert rows.get("generation", rows.get("filling masks")) == rows["packing"] == "passed"


# ---- push_to_hub of a run ------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path):
    """`settings(**training)`: a run of six steps that saves every second one and pushes."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(60):
        lines = [f"def function_{i}_{j}(x):\n    return x * {i * j % 17} + {j}\n" for j in range(8)]
        (corpus / f"module_{i}.txt").write_text("\n".join(lines), encoding="utf-8")

    def make(**training) -> dict:
        return {
            "output_dir": str(tmp_path / "run"),
            "model": {
                "model_type": "hf_llm_decoder",
                **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1},
            },
            "tokenizer": {"vocab_size": 480},
            "data": {
                **{"corpus": str(corpus / "*.txt"), "row_length": 48, "validation_rows": 4},
                "cache_dir": str(tmp_path / "rows"),
            },
            "objective": {"name": "causal"},
            "training": {
                **{"max_steps": 6, "save_steps": 2, "eval_steps": 6, "per_device_train_batch_size": 2},
                **{"use_cpu": True, "disable_tqdm": True, "report_to": "none"},
                **{"push_to_hub": True, "hub_model_id": "me/run", "hub_always_push": True, **training},
            },
            "cpu_threads": 1,
        }

    return make


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr("hf_llm.training.report.draw_figures", lambda *args, **kwargs: None)


def test_a_run_pushes_what_it_saves(settings, hub, passing, no_plots, tmp_path):
    """The model of every save, whole, with the report of its step; at the end the model that was checked."""
    assert (
        pretrain(
            Pretraining.from_dict(settings(hub_private_repo=True, hub_revision="trial", save_total_limit=1)), TEMPLATE
        )
        is None
    )
    messages = [message for _, _, message in hub.commits]
    steps = [f"Training in progress, step {step}" for step in (2, 4, 6)]
    assert list(dict.fromkeys(messages)) == [*steps, "Upload model"] and hub.private["me/run"]
    files = hub.files("me/run", "trial")
    assert hub.files("me/run") == {}
    assert files == {name: (tmp_path / "run" / name).read_bytes() for name in published_files(tmp_path / "run")}
    assert {"model.safetensors", "README.md", "samples.md", "tokenizer.json", "decoder.py"} <= set(files)
    assert not any(name.endswith((".pt", ".pth", ".bin")) for name in files)
    assert not list((tmp_path / "run").glob(".saving-*"))


@pytest.mark.slow
def test_the_last_push_alone(settings, hub, passing, no_plots):
    pretrain(Pretraining.from_dict(settings(hub_strategy="end")), TEMPLATE)
    assert hub.commits == [("me/run", "main", "Upload model")]


def test_a_finished_model_that_fails_the_check_is_not_pushed(settings, hub, no_plots, monkeypatch, tmp_path):
    report = Report("run", [Row("packing", "failed", "a document sees another")])
    monkeypatch.setattr("hf_llm.publishing.hub.check", lambda source, **_: report)
    with pytest.raises(ValueError, match="not uploaded, for the check of packing failed"):
        pretrain(Pretraining.from_dict(settings(hub_strategy="end")), TEMPLATE)
    assert hub.commits == [] and (tmp_path / "run" / "model.safetensors").is_file()


def test_a_push_that_fails_does_not_stop_a_run(settings, hub, passing, no_plots, tmp_path, caplog):
    hub.refuse_commits = True
    with pytest.raises(ValueError, match="The run is complete: upload it with `hf-llm publish"):
        pretrain(Pretraining.from_dict(settings()), TEMPLATE)
    assert "an upload to the Hub failed, and the run goes on" in caplog.text
    assert (tmp_path / "run" / "model.safetensors").is_file() and list_checkpoints(tmp_path / "run")


@pytest.mark.parametrize(
    "fields, message",
    (
        ({"hub_strategy": "checkpoint"}, "hub_strategy = 'checkpoint' would upload optimizer states"),
        ({"hub_token": "another"}, "training.push_to_hub = True: .*401"),
    ),
)
def test_what_cannot_be_pushed_is_said_before_training(fields, message, settings, hub, no_plots, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(Pretraining.from_dict(settings(**fields)), TEMPLATE)
    assert not list_checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_the_recipe_ends_in_a_checked_repository(settings, tmp_path, hf_llm_command):
    """recipes/pretrain.py as users start it; then the model by its id, without hf_llm."""
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings()), encoding="utf-8")
    with HubStub() as hub:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **hub.environment(tmp_path / "author")}
        command = [sys.executable, str(Path(REPOSITORY, "recipes", "pretrain.py")), "--config", str(config)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "0 failed" in run.stdout and f"{hub.url}/me/run/commit/" in run.stdout
        found = hf_llm_command("check", "me/run", **hub.environment(tmp_path / "user"))
        assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture
def tuning(decoder, tmp_path):
    """`tuning(**more)`: two steps of fine-tuning that push."""

    def make(**more) -> str:
        rows = [{"text": f"return {i}", "label": ["no", "yes"][i % 2]} for i in range(60)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        training = {"max_steps": 2, "per_device_train_batch_size": 2, "disable_tqdm": True, "report_to": "none"}
        settings = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": str(decoder)},
            "task": "sequence_classification",
            "data": {"dataset": str(tmp_path / "rows.jsonl"), "max_length": 32},
            "training": {**training, "push_to_hub": True, "hub_model_id": "me/tuned"},
            **more,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        return str(tmp_path / "config.yaml")

    return make


@pytest.mark.parametrize("checked", ["passing", pytest.param("really", marks=pytest.mark.slow)])
def test_a_fine_tuned_model_is_pushed_when_it_is_done(checked, tuning, hub, tmp_path, request):
    if checked == "passing":
        request.getfixturevalue("passing")
    assert Finetuning(Finetuning.load(tuning()), TUNING_TEMPLATE).run() is None
    assert hub.commits[-1][2] == "Upload model"
    files = hub.files("me/tuned")
    assert files == {name: (tmp_path / "run" / name).read_bytes() for name in published_files(tmp_path / "run")}
    assert {"model.safetensors", "README.md", "tokenizer.json"} <= set(files)


def test_an_adapter_alone_is_not_pushed(tuning, hub):
    """It is said before anything is trained."""
    with pytest.raises(ValueError, match="push_to_hub = True needs a whole model"):
        Finetuning(Finetuning.load(tuning(peft={"method": "lora"}))).run()
    assert not hub.commits
