"""`hf-llm check` on checkpoints that are whole, and on ones that are broken in one way each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from golden.make import ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import hf_llm
import hf_llm_cli as cli
from hf_llm import LLMDecoderForCausalLM
from hf_llm.manifest import write_manifest
from hf_llm.models.common import auto_map
from hf_llm.models.compat import TESTED_TRANSFORMERS
from hf_llm.publishing import Row, check
from hf_llm.publishing.bare import outcome
from hf_llm.publishing.checking import (
    FAILED,
    OPENING,
    PASSED,
    SKIPPED,
    check_export,
    inspect,
    run_bare,
    to_native,
)
from hf_llm.publishing.folder import read_folder

from .conftest import save_checkpoint


HEADS = {name for name in auto_map("decoder") if name != "AutoConfig"}


OTHER = {"num_experts": 4, "position_embedding": "learned", "layer_types": "SL", "sliding_window": 3}


def failures(rows) -> set[str]:
    return {row.check for row in rows if row.result == FAILED}


# ---- ways to break a checkpoint ------------------------------------------------------------------------------------


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder):
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return edit


def configure(name: str, **fields) -> Callable[[Path], None]:
    """Set fields of a JSON file; None removes one."""

    def edit(folder):
        content = json.loads((folder / name).read_text(encoding="utf-8")) | fields
        kept = {field: value for field, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def tear(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def weights_elsewhere(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    index = {"weight_map": dict.fromkeys(names, "../x.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tokens_without_embeddings(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{i}>" for i in range(20)])
    tokenizer.save_pretrained(folder)


def other_contents_than_the_manifest(folder: Path) -> None:
    write_manifest(folder)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "Added by hand.\n")


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


SHORT_MAP = {name: target for name, target in auto_map("decoder").items() if name != "AutoModelForTokenClassification"}
CARD = "---\nlibrary_name: transformers\npipeline_tag: {}\n---\n{}\n"

# what is seen without opening the checkpoint: how it is broken, and the rows that fail
SEEN = {
    "config of another architecture": (configure("config.json", model_type="llama"), {"configuration"}),
    "config that is no JSON": (write("config.json", "{"), {"configuration"}),
    "config that is no object": (write("config.json", "[]"), {"configuration"}),
    "an adapter": (write("adapter_config.json", "{}"), {"configuration"}),
    "a head is not in the auto_map": (configure("config.json", auto_map=SHORT_MAP), {"auto_map"}),
    "no class is named": (configure("config.json", architectures=None), {"auto_map"}),
    "no version": (configure("config.json", hf_llm_version=None), {"version"}),
    "a code file is missing": (remove("norms.py"), {"code"}),
    "a code file is altered": (replace("norms.py", "import torch\n", "import torch  # mine\n"), {"code"}),
    "code is older than a known fix": (remove("compat.py"), {"code", "known faults"}),
    "weights are torn": (tear, {"weights"}),
    "weights are missing": (remove("model.safetensors"), {"weights"}),
    "a weight is not a number": (weights(lambda t: t["model.norm.weight"].fill_(float("nan"))), {"weights"}),
    "an index names what is not there": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        {"weights"},
    ),
    "an index names what is outside": (weights_elsewhere, {"weights"}),
    "a pickle": (write("pytorch_model.bin", b"\x80\x04."), {"pickles"}),
    "contents of another time": (other_contents_than_the_manifest, {"manifest"}),
    "an end that no token has": (configure("generation_config.json", eos_token_id=9999), {"generation config"}),
    "generation that cannot be": (configure("generation_config.json", max_new_tokens=0), {"generation config"}),
    "no generation config": (remove("generation_config.json"), {"generation config"}),
    "no card": (remove("README.md"), {"card"}),
    "a card without metadata": (write("README.md", "# A model\n"), {"card"}),
    "a card with broken metadata": (write("README.md", "---\na: [\n---\n"), {"card"}),
    "a card of another library": (replace("README.md", "library_name: transformers", "library_name: peft"), {"card"}),
    "a card without a task": (replace("README.md", "pipeline_tag: text-generation\n", ""), {"card"}),
    "a card of another task": (write("README.md", CARD.format("fill-mask", "")), {"card"}),
    "a card of a newer version": (write("README.md", CARD.format("text-generation", "By hf_llm 99.0.3.")), {"card"}),
}  # fmt: skip

SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_API_KEY",
    "WANDB_ENTITY",
    "AWS_PROFILE",
    "PYTHON_TOKEN",
    "MINE",
)
LOOKING_FOR_SECRETS = """import os
import huggingface_hub
found = [name for name, value in os.environ.items() if value == "a secret"]
assert not found and huggingface_hub.get_token() is None, found
"""

# what only shows where the checkpoint is used by someone who has no hf_llm
OPENED = {
    "whole": (replace("norms.py", "import torch\n", f"{LOOKING_FOR_SECRETS}import torch\n"), set()),
    "code that needs hf_llm": (replace("losses.py", "import torch\n", "import hf_llm\nimport torch\n"), HEADS),
    "a tensor is missing": (weights(lambda t: t.pop("model.norm.weight")), HEADS),
    "tokens without embeddings": (tokens_without_embeddings, {"AutoTokenizer"}),
    "documents are not kept apart": (
        replace("stack.py", "documents = find_documents(", "documents = None and find_documents("),
        {"packing"},
    ),
    "a cache of other keys": (
        replace("attention.py", " cache.update(key, value", " cache.update(key * 2, value"),
        {"generation"},
    ),
}  # fmt: skip
OPENED_SLOWLY = {
    "padding is attended to": (
        replace("decoder.py", "documents, attention_mask, kwargs", "documents, None, kwargs"),
        {"padding"},
    ),
    "no tokenizer": (remove_tokenizer, {"AutoTokenizer"}),
    "a code file is missing": (remove("losses.py"), HEADS),
    "the configuration is not there": (remove("configuration.py"), {"AutoConfig"}),
    "a head that is not there": (
        configure("config.json", auto_map=auto_map("decoder") | {"AutoModelForQuestionAnswering": "decoder.Nothing"}),
        {"AutoModelForQuestionAnswering"},
    ),
    "a tensor of another shape": (weights(lambda t: t.update({"model.norm.weight": torch.ones(2)})), HEADS),
    "a tensor too many": (
        weights(lambda t: t.update({"model.more.weight": torch.ones(2)})),
        {"AutoModelForCausalLM", "AutoModelForPreTraining"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN)
def test_what_is_broken_is_the_row_that_fails(case, decoder, tmp_path):
    folder = shutil.copytree(decoder, tmp_path / "model")
    assert failures(inspect(folder)) == set()
    damage, expected = SEEN[case]
    damage(folder)
    assert failures(inspect(folder)) == expected


@pytest.mark.parametrize("cases", (OPENED, pytest.param(OPENED_SLOWLY, marks=pytest.mark.slow)), ids=("some", "more"))
def test_what_others_would_meet_is_the_row_that_fails(cases, decoder, tmp_path, monkeypatch):
    """All in one process, which has no hf_llm and no secrets: neither variables nor the token of `hf auth login`."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("a secret")
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    folders = [shutil.copytree(decoder, tmp_path / case.replace(" ", "-")) for case in cases]
    for folder, (damage, _) in zip(folders, cases.values()):
        damage(folder)
    found = dict(zip(cases, run_bare([str(folder) for folder in folders])))
    assert {case: failures(rows) for case, rows in found.items()} == {case: rows for case, (_, rows) in cases.items()}
    if cases is OPENED:
        whole = {row.check: row.seen for row in found["whole"]}
        assert set(whole) == {"AutoConfig", "AutoTokenizer", *HEADS, "generation", "packing", "padding"}
        assert "LLMDecoderForTokenClassification; new: score" in whole["AutoModelForTokenClassification"]
        needy = {row.check: row.seen for row in found["code that needs hf_llm"]}
        assert "hf_llm" in needy["AutoModel"]


@pytest.mark.slow
@pytest.mark.parametrize("stack", ("decoder", "encoder", "encoder_decoder"))
@pytest.mark.parametrize("fields", ({}, OTHER), ids=("default", "other"))
def test_whole_checkpoints_pass(stack, fields, tmp_path):
    report = check(save_checkpoint(tmp_path / stack, stack, **fields))
    assert not report.failures, str(report)
    rows = {row.check: row for row in report.rows}
    assert set(auto_map(stack)) | {"packing", "padding", "code", "weights", "export"} <= set(rows)
    assert rows["export"].result == (PASSED if stack == "decoder" and not fields else SKIPPED)
    assert rows["export"].result == PASSED or rows["export"].seen.startswith("refused: ")
    use = rows["filling masks" if stack == "encoder" else "generation"]
    assert use.result == PASSED and "main(a" in use.seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, tag",
    (
        ("LLMEncoderForSequenceClassification", "text-classification"),
        ("LLMEncoderForMultipleChoice", "multiple-choice"),
        ("LLMDecoderModel", "feature-extraction"),
        ("LLMEncoderDecoderForQuestionAnswering", "question-answering"),
    ),
)
def test_other_heads_in_shards_and_half_precision_pass(name, tag, tmp_path):
    """What was saved is what must be whole: there is no language model to use, and that is no failure."""
    stack = next(s for s in ("encoder_decoder", "encoder", "decoder") if f"{s}.{name}" in auto_map(s).values())
    folder = save_checkpoint(tmp_path / "model", stack)
    model = getattr(hf_llm, name).from_pretrained(folder, dtype=torch.bfloat16)
    for path in folder.glob("model*"):
        path.unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    write("README.md", CARD.format(tag, ""))(folder)
    report = check(folder)
    assert not report.failures, str(report)
    rows = {row.check: row for row in report.rows}
    assert name in {rows[auto].seen.split(",")[0] for auto in auto_map(stack)}
    assert rows["packing"].result == rows["padding"].result == PASSED and "generation" not in rows
    next(iter(sorted(folder.glob("model-*.safetensors")))).unlink()
    assert failures(inspect(folder)) == {"weights"}


# code that is not the installed package's, or may be: each file is in a place from where transformers would run it
FOREIGN = {
    "altered": replace("norms.py", "import torch\n", "import torch  # mine\n"),
    "missing": remove("norms.py"),
    "another repository's": configure(
        "config.json", auto_map=auto_map("decoder") | {"AutoModel": "other/model--decoder.LLMDecoderModel"}
    ),
    "one more class": configure("config.json", auto_map=auto_map("decoder") | {"AutoTokenizer": ["mine.Mine", None]}),
    "a tokenizer's": configure("tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Mine", None]}),
    "custom generation": lambda folder: (folder / "custom_generate").mkdir(),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_code_runs_only_where_it_is_trusted(case, decoder, tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr("hf_llm.publishing.checking.run_bare", lambda *sources: run.append(sources) or [[]])
    monkeypatch.setattr("hf_llm.publishing.checking.check_export", lambda folder: "not tried")
    assert not check(decoder).failures and len(run) == 1
    folder = shutil.copytree(decoder, tmp_path / "model")
    FOREIGN[case](folder)
    row = next(row for row in check(folder).rows if row.check == OPENING)
    assert row.result == SKIPPED and "--trust-remote-code" in row.seen and len(run) == 1
    trusted = check(folder, trust_remote_code=True).rows
    assert len(run) == 2 and OPENING not in [row.check for row in trusted]
    assert {row.check: row.result for row in trusted}["code"] == (FAILED if case in ("altered", "missing") else PASSED)


def test_old_code_is_said_to_be_old_and_newer_code_what_it_was_tested_with(decoder, tmp_path):
    folder = shutil.copytree(ROOT / "v0.1.0" / "decoder", tmp_path / "old")
    shutil.copytree(ROOT / "v0.1.0" / "code", folder, dirs_exist_ok=True)
    rows = {row.check: row for row in inspect(folder)}
    assert rows["known faults"].result == FAILED and rows["tested with"].result == SKIPPED
    assert "generate() is wrong under transformers 5.24" in rows["known faults"].seen
    assert "`hf-llm update`" in rows["known faults"].seen
    rows = {row.check: row for row in inspect(decoder)}
    oldest, newest = TESTED_TRANSFORMERS
    assert rows["tested with"].seen.startswith(f"transformers {oldest} to {newest}")
    assert f"here transformers {transformers.__version__}, torch {torch.__version__}" in rows["tested with"].seen


def test_a_checkpoint_of_another_version_is_not_compared(decoder, tmp_path):
    folder = shutil.copytree(decoder, tmp_path / "model")
    configure("config.json", hf_llm_version="0.0.9")(folder)
    replace("norms.py", "import torch\n", "import torch  # as it was then\n")(folder)
    write("README.md", CARD.format("text-generation", "By hf_llm 0.0.8."))(folder)  # trained with it, and updated
    rows = {row.check: row for row in inspect(folder)}
    assert rows["code"].result == SKIPPED and "hf_llm 0.0.9" in rows["code"].seen and rows["card"].result == PASSED
    assert rows["version"].result == PASSED and "0.0.9" in rows["version"].seen


def test_an_export_that_computes_something_else_fails(decoder, monkeypatch):
    row = Row("export", *outcome(check_export, read_folder(decoder)))
    assert row.result == PASSED and "qwen3" in row.seen

    def changed(model):
        native = to_native(LLMDecoderForCausalLM.from_pretrained(decoder))
        native.model.norm.weight.data.mul_(1.1)
        return native

    monkeypatch.setattr("hf_llm.publishing.checking.to_native", changed)
    row = Row("export", *outcome(check_export, read_folder(decoder)))
    assert row.result == FAILED and "Qwen3ForCausalLM differs" in row.seen


def test_the_command_prints_a_table_and_exits_with_1_on_a_failure(decoder, tmp_path, capsys):
    folder = shutil.copytree(decoder, tmp_path / "model")
    tear(folder)  # nothing can be opened then: the command does not try
    with pytest.raises(SystemExit) as exit_code:
        cli.main(["check", str(folder)])
    assert exit_code.value.code == 1
    rows = capsys.readouterr().out.splitlines()
    words = next(row.split() for row in rows if row.startswith("weights"))
    assert words[:5] == ["weights", "failed", "model.safetensors", "is", "torn"]
    assert rows[-1] == f"{folder}: 9 passed, 1 failed, 3 skipped"
    with pytest.raises(SystemExit):
        cli.main(["check", str(folder), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False and {"check": "pickles", "result": "passed", "seen": "none"} in report["rows"]
