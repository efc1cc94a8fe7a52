"""Liger's kernels beside the plain forms, under Triton's interpreter, where liger-kernel and triton are installed:

TRITON_INTERPRET=1 pytest tests/models/test_liger.py
"""

import os

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.activations import ACT2FN

from hf_llm.backends import liger
from hf_llm.models.feedforward import gate
from hf_llm.models.losses import summed_cross_entropy
from hf_llm.models.norms import rms_norm
from hf_llm.models.operators import OPERATORS
from hf_llm.models.positions import for_heads, rotate_halves

from .generating import tiny_model
from .tiny import STACKS, VOCABULARY


pytest.importorskip("liger_kernel")
pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton interprets kernels on a CPU with TRITON_INTERPRET=1", allow_module_level=True)

import numpy  # noqa: E402
import triton.language as tl  # noqa: E402
from liger_kernel.ops import cross_entropy, geglu  # noqa: E402
from liger_kernel.ops import rms_norm as rms_norm_kernels
from triton.runtime import interpreter  # noqa: E402


@pytest.fixture(autouse=True)
def whole_interpreter(monkeypatch):
    """What the interpreter lacks beside the compiler: float32 scalars, arithmetic in bfloat16 (whose bits it holds as
    integers), tanh and rsqrt."""
    convert, operate = interpreter._implicit_cvt, interpreter.InterpreterBuilder.binary_op

    def convert_floats(argument):
        if not isinstance(argument, float):
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(numpy.array([argument], numpy.float32), tl.float32), tl.float32)

    def widen(handle) -> numpy.ndarray:
        return (handle.data.astype(numpy.uint32) << 16).view(numpy.float32)

    def operate_in_float32(self, lhs, rhs, operation):
        if lhs.dtype.scalar != tl.bfloat16:
            return operate(self, lhs, rhs, operation)
        result = torch.from_numpy(numpy.ascontiguousarray(operation(widen(lhs), widen(rhs)))).bfloat16()
        return interpreter.TensorHandle(result.view(torch.int16).numpy().view(numpy.uint16), tl.bfloat16)

    monkeypatch.setattr(interpreter, "_implicit_cvt", convert_floats)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "binary_op", operate_in_float32)
    for module in (cross_entropy, geglu):
        monkeypatch.setattr(module, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)
    monkeypatch.setattr(rms_norm_kernels, "rsqrt", lambda x: 1 / tl.sqrt(x))


# relative to the largest value: rounding of one operation in the dtype
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def draw(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def assert_same(kernel, plain, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Outputs and gradients. Rotations may be written in place: each side gets copies."""
    results = []
    for function in (kernel, plain):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        outputs = function(*(x * 1 for x in leaves))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        loss = sum((x * torch.randn(x.shape, generator=generator).to(x.dtype)).sum() for x in outputs)
        results.append([*(x.detach() for x in outputs), *torch.autograd.grad(loss, leaves)])
    for mine, exact in zip(*results, strict=True):
        scale = float(exact.abs().max())
        torch.testing.assert_close(mine, exact, rtol=0, atol=TOLERANCES[dtype] * max(scale, 1.0))


@dtypes
def test_rms_norm(dtype):
    torch.manual_seed(0)
    functions = [
        lambda states, scale, form=form: form(states, scale, 1e-6) for form in (liger.liger_rms_norm, rms_norm.plain)
    ]
    assert_same(*functions, [draw(2, 5, 16, dtype=dtype), draw(16, dtype=dtype)], dtype)


@dtypes
@pytest.mark.parametrize("rows", (1, 2))
def test_rotation(dtype, rows):
    torch.manual_seed(0)
    angles = torch.randn(rows, 5, 4).repeat(1, 1, 2)
    cos, sin = (part.to(dtype) for part in for_heads(angles.cos(), angles.sin()))
    functions = [
        lambda query, key, form=form: form(query, key, cos, sin)
        for form in (liger.liger_rotate_halves, rotate_halves.plain)
    ]
    assert_same(*functions, [draw(2, 4, 5, 8, dtype=dtype), draw(2, 2, 5, 8, dtype=dtype)], dtype)


@dtypes
@pytest.mark.parametrize("act", ("silu", "swish", "gelu_pytorch_tanh", "gelu_new", "relu"))
def test_gates(dtype, act):
    torch.manual_seed(0)
    functions = [lambda a, b, form=form: form(a, b, ACT2FN[act]) for form in (liger.liger_gate, gate.plain)]
    assert_same(*functions, [draw(2, 5, 24, dtype=dtype), draw(2, 5, 24, dtype=dtype)], dtype)


OPTIONS = {
    "plain": (None, None, 0.0, 0.0, -100),
    "all": (None, 3.0, 0.1, 1e-2, -100),
    "scaled": (0.5, None, 0.0, 0.0, -100),
}


@dtypes
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_entropy(dtype, bias, options):
    """With labels that are ignored."""
    torch.manual_seed(0)
    head = nn.Linear(16, VOCABULARY, bias=bias).to(dtype)
    labels = torch.randint(VOCABULARY, (12,))
    labels[::4] = -100
    results = []
    hidden = draw(12, 16, dtype=dtype)
    for form in (liger.liger_cross_entropy, summed_cross_entropy.plain):
        loss = form(hidden, head, labels, *options)
        results.append([loss.float(), *torch.autograd.grad(loss, [hidden, *head.parameters()])])
    for mine, exact in zip(*results, strict=True):
        torch.testing.assert_close(
            mine, exact, rtol=0, atol=2 * TOLERANCES[dtype] * max(float(exact.abs().max()), 1.0)
        )


@pytest.fixture
def interpreted(monkeypatch, without_backends):
    """The kernels for tensors on a CPU."""
    for name, form in liger.FORMS.items():
        monkeypatch.setitem(OPERATORS[name], "cpu", form)


@pytest.mark.parametrize("stack", STACKS)
def test_a_model_with_all_of_them(stack, request):
    """Loss and gradients of a whole model within 1e-4 of the plain forms'."""
    ids = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    model, results = tiny_model(stack).train(), []
    for fixture in ("without_backends", "interpreted"):
        request.getfixturevalue(fixture)
        loss = model(input_ids=ids, labels=ids).loss
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for plain, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_trainer_asks_for_the_kernels(tmp_path, without_backends):
    """`use_liger_kernel` enters those that `liger_kernel_config` leaves on."""
    settings = {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}, "max_steps": 1}
    arguments = TrainingArguments(tmp_path, report_to="none", use_cpu=True, save_strategy="no", **settings)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(1, VOCABULARY, (2, 7))]
    Trainer(tiny_model("decoder"), arguments, train_dataset=rows).train()
    entered = {name for name, forms in OPERATORS.items() if forms.get("cuda") is liger.FORMS.get(name, "none")}
    assert entered == {"rms_norm", "gate", "summed_cross_entropy"}
