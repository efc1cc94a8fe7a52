"""Checkpoints opened by the code that they carry, where hf_llm is not installed: they open, and compute the same."""

import contextlib
import http.server
import logging
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

import hf_llm
from hf_llm.models.common import auto_map
from hf_llm.models.compat import TESTED_TRANSFORMERS, check_version

from .test_matrix import configurations
from .tiny import EXPERTS, STACKS, inputs_of, redraw, tiny_config, tiny_model


# what attention backends drop in silence if nobody looks, and one of everything else that acts there
CHOSEN = {
    "sinks": {"attention_sinks": True, "layer_types": "SL", "sliding_window": 3, "qk_norm": None},
    "softcap": {"attn_logit_softcapping": 3.0, "norm_placement": "sandwich", "norm_type": "rmsnorm_unit_offset"},
    "bias": {"position_embedding": "relative_bias", **EXPERTS, "shared_expert_intermediate_size": 24},
}


def run_elsewhere(*names: str, **environment: str) -> list[str]:
    """Lines that `elsewhere.py` prints, in a process of its own, far from this repository."""
    script = Path(__file__).with_name("elsewhere.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    command = [sys.executable, str(script), *map(str, names)]
    run = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-6000:]
    return run.stdout.splitlines()


LANGUAGE_MODELS = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")


def save_with_outputs(config, folder: Path, every_head: bool = True) -> list[Path]:
    """
    A checkpoint of every head of the configuration's stack, or of the language model alone, each with inputs and the
    outputs that belong to them.
    """
    folders = []
    stack = config.model_type.removeprefix("hf_llm_")
    heads = {
        target: auto
        for auto, target in auto_map(stack).items()
        if auto not in ("AutoConfig", "AutoModelForPreTraining")
    }
    for target, auto in heads.items():
        if not every_head and auto not in LANGUAGE_MODELS:
            continue
        model_class = getattr(hf_llm, target.split(".")[1])
        model = redraw(model_class(type(config).from_dict(config.to_dict()))).eval()
        inputs = inputs_of(stack)
        if auto == "AutoModelForMultipleChoice":
            inputs = {name: value[None] for name, value in inputs.items()}
        with torch.no_grad():
            outputs = model(**inputs)
        tensors = {f"in.{name}": value for name, value in inputs.items()}
        tensors |= {f"out.{name}": value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
        assert len(tensors) > len(inputs)
        folders.append(folder / auto / "checkpoint")  # one name: transformers imports equal code of it once
        model.save_pretrained(folders[-1])
        safetensors.torch.save_file(tensors, folders[-1] / "expected.safetensors", metadata={"auto": auto})
    return folders


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each stack with its code."""
    folders = {stack: tmp_path_factory.mktemp("checkpoints") / stack for stack in STACKS}
    for stack, folder in folders.items():
        tiny_model(stack, **EXPERTS).save_pretrained(folder)
    return folders


def test_saving_writes_all_code(checkpoints):
    """Every file of `hf_llm/models` but the other stacks', whichever class is saved."""
    sources = {path.name for path in Path(hf_llm.__file__).parent.joinpath("models").glob("*.py")} - {"__init__.py"}
    for stack, folder in checkpoints.items():
        written = {path.name for path in folder.glob("*.py")}
        others = {"encoder.py", "decoder.py", "encoder_decoder.py"} - {f"{stack}.py"}
        if stack == "encoder":  # it generates nothing
            others |= {"decoding.py", "generation.py"}
        assert sources - others <= written, stack


def test_checkpoints_open_where_hf_llm_is_not_installed(checkpoints, tmp_path):
    """By every head, from folders whose names may have any letters."""
    folders = [
        path.rename(tmp_path / name) for path, name in zip(checkpoints.values(), ("modèle", "Größe-1", "モデル"))
    ]
    lines = run_elsewhere(*folders, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    opened = sorted(line.split()[1] for line in lines)
    assert opened == sorted(name for stack in STACKS for name in auto_map(stack) if name != "AutoConfig")


def test_checkpoints_compute_the_same_where_hf_llm_is_not_installed(tmp_path):
    folders = []
    for stack in STACKS:
        for name, fields in CHOSEN.items():
            every_head = name == "sinks"
            folders += save_with_outputs(tiny_config(stack, **fields), tmp_path / stack / name, every_head)
    assert len(run_elsewhere(*folders, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")) == len(folders)


def covering(stack: str) -> list:
    """Random configurations that have, together, every bundle of fields of the matrix that any of them has."""
    left, chosen = None, []
    drawn = [(set(map(repr, _items(fields))), config) for fields, config in configurations(stack)]
    left = set().union(*(items for items, _ in drawn))
    while left:
        items, config = max(drawn, key=lambda draw: len(draw[0] & left))
        left -= items
        chosen.append(config)
    return chosen


def _items(fields: dict) -> list:
    halves = [(half, value) for half, value in fields.items() if half in ("encoder", "decoder")]
    if halves:
        return [(half, *item) for half, value in halves for item in value.items()]
    return list(fields.items())


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("road", ("folder", "hub"))
def test_every_choice_computes_the_same_where_hf_llm_is_not_installed(stack, road, tmp_path):
    folders = []
    for n, config in enumerate(covering(stack)):
        folders += save_with_outputs(config, tmp_path / str(n))
    if road == "folder":
        lines = run_elsewhere(*folders, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    else:
        with hub_of(folders, tmp_path) as (names, environment):
            shown = [f"{name}={folder}" for name, folder in zip(names, folders)]
            lines = run_elsewhere(*shown, **environment)
    assert len(lines) == len(folders)


class Hub(http.server.SimpleHTTPRequestHandler):
    """As much of the Hub's HTTP interface as downloading files takes; `/me/NAME` is a folder of that name."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        path = self.path.split("?")[0].strip("/").split("/")
        file = Path(self.directory, path[1], *path[4:]) if path[2:3] == ["resolve"] else None
        found = file is not None and file.is_file()
        content = file.read_bytes() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        if found:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{path[1]}-{file.name}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def hub_of(folders: list[Path], tmp_path: Path):
    """Repositories that show the folders, and the environment in which they are found."""
    (tmp_path / "me").mkdir()
    for n, folder in enumerate(folders):
        (tmp_path / "me" / f"model-{n}").symlink_to(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(tmp_path / "me")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    }  # fmt: skip
    try:
        yield [f"me/model-{n}" for n in range(len(folders))], environment
    finally:
        server.shutdown()


def test_checkpoints_open_from_the_hub(tmp_path):
    """Code files come one by one from a repository, by another way than from a folder."""
    folders = save_with_outputs(tiny_config("encoder_decoder", **CHOSEN["sinks"]), tmp_path, every_head=False)
    with hub_of(folders, tmp_path) as (names, environment):
        lines = run_elsewhere(*(f"{name}={folder}" for name, folder in zip(names, folders)), **environment)
    assert len(lines) == len(folders)


# -- versions of transformers -----------------------------------------------------------------------------------------


def test_the_installed_version_is_in_the_tested_range():
    check_version(transformers.__version__)
    check_version(f"{TESTED_TRANSFORMERS[1]}.7.dev0")


def test_an_older_version_is_refused_with_the_range():
    with pytest.raises(
        ImportError, match=rf"{TESTED_TRANSFORMERS[0]} to {TESTED_TRANSFORMERS[1]}; 4.57.6 is installed"
    ):
        check_version("4.57.6")


def test_a_newer_version_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(logging.getLogger("transformers"), "warning", lambda message, *_: told.append(message))
    for _ in range(2):
        check_version("7.1.0")
    assert len(told) == 1 and f"to {TESTED_TRANSFORMERS[1]}; 7.1.0 is installed" in told[0]
