"""Memory of import and export: no more than the model once, and never at the cost of a model that is still in use."""

import json
import runpy
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

import hf_llm
from hf_llm.interop import convert, folders, ops

from . import parity
from .cases_gpt_like import GPT_LIKE


BENCHMARK = Path(__file__).parents[2] / "recipes" / "benchmarks" / "interop.py"


@pytest.fixture
def seen(monkeypatch):
    """For every call of an operation that moves weights about: how many weights of earlier calls are still alive."""
    earlier, alive = [], []

    def spy(method):
        def operate(tensors, config):
            alive.append(sum(reference() is not None for reference in earlier))
            earlier.extend(weakref.ref(tensor) for tensor in tensors)
            return method(tensors, config)

        return operate

    for op in (ops.transpose, ops.fused_transposed):
        for name in ("to_ours", "to_native"):
            monkeypatch.setitem(vars(op), name, spy(getattr(op, name)))
    return alive


@pytest.fixture
def gpt2(tmp_path):
    parity.native_model("gpt2", **GPT_LIKE["gpt2"][0]).save_pretrained(tmp_path / "native")
    return tmp_path / "native"


def test_what_was_converted_is_freed_before_the_next(gpt2, seen, tmp_path):
    folders.import_folder(gpt2, tmp_path / "ours")
    most = max(seen)
    folders.export_folder(tmp_path / "ours", tmp_path / "back")
    assert len(seen) > 20
    assert most <= 1  # the last one, which is about to be replaced
    assert max(seen) <= 3  # q, k and v


@torch.no_grad()
def test_a_model_that_is_passed_stays_whole(gpt2):
    native = parity.native_model("gpt2", **GPT_LIKE["gpt2"][0])
    before = {name: tensor.clone() for name, tensor in native.state_dict().items()}
    ours = hf_llm.from_native(native)
    weights = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    back = hf_llm.to_native(ours)
    for model, state in ((native, before), (ours, weights), (back, before)):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert ours.model.embed_tokens.weight.data_ptr() == native.transformer.wte.weight.data_ptr()  # shared, not copied
    parity.assert_same_logits(native, ours)


def test_weights_are_contiguous(gpt2):
    ours = hf_llm.from_native(gpt2)
    assert all(weight.is_contiguous() for weight in (*ours.parameters(), *hf_llm.to_native(ours).parameters()))


def test_a_consumed_model_is_empty():
    native = parity.native_model("gpt2", **GPT_LIKE["gpt2"][0])
    convert.import_model(parity.FAMILIES["gpt2"], native, consume=True)
    assert {tensor.device.type for tensor in native.state_dict().values()} == {"meta"}


@pytest.mark.slow
def test_peak_memory_is_at_most_1_2_models(tmp_path):
    """Resident memory of processes that import and export a model of 500 MB whose weights are mostly transposed."""
    weights = runpy.run_path(str(BENCHMARK))["prepare"]("gpt2", tmp_path)
    for task in ("from_native", "import_folder", "export_folder"):
        command = [sys.executable, str(BENCHMARK), "--measure", task, str(tmp_path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert json.loads(output)["bytes"] <= 1.2 * weights, task
