"""Fixtures of the model tests."""

import pytest
import torch

from hf_llm.models.attention import FASTER_ATTENTION
from hf_llm.models.operators import OPERATORS
from hf_llm.models.visibility import LENGTHS

from . import flash


@pytest.fixture
def flash_kernels(monkeypatch) -> flash.FlashStandIn:
    """flash_attention_2 and flash_attention_3 on CPU, recording what reaches them."""
    return flash.install(monkeypatch)


@pytest.fixture
def uncompiled():
    """Flex attention without compiling it: the same masks and scores, a thousand times sooner on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def without_backends():
    """Plain PyTorch, as a checkpoint's own code runs; entries that the test makes are removed after it."""
    tables = (*OPERATORS.values(), FASTER_ATTENTION, LENGTHS)
    before = [dict(table) for table in tables]
    for table in tables[:-1]:
        table.clear()
    LENGTHS.pop("sdpa", None)
    yield
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)
