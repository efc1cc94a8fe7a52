"""What is done in another way on a CPU, beside torch's operations: norms, rotations, wide states."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_llm import LLMDecoderConfig
from hf_llm.backends.cpu.functions import is_large
from hf_llm.models.feedforward import get_feed_forward
from hf_llm.models.norms import rms_norm
from hf_llm.models.positions import apply_rotary, for_heads

from .tiny import SIZES, with_backends


pytestmark = with_backends


SIZE = 16
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def norm_inputs(dtype, shape=(2, 5, 3, SIZE)) -> list[torch.Tensor]:
    torch.manual_seed(0)
    states = torch.randn(shape).to(dtype).transpose(1, 2)
    return [states.requires_grad_(), torch.randn(SIZE).requires_grad_()]


def rotation(batch: int, length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin as `apply_rotary` takes them, of random angles."""
    angles = torch.randn(batch, length, width // 2, generator=torch.Generator().manual_seed(2)).repeat(1, 1, 2)
    return for_heads(angles.cos(), angles.sin())


def differentiated(function, inputs) -> list[torch.Tensor]:
    output = function(*inputs)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output, *torch.autograd.grad(output, [x for x in inputs if x.requires_grad], direction)]


def assert_near(actual, expected, dtype) -> None:
    for mine, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=TOLERANCES[dtype], atol=4 * TOLERANCES[dtype])


@pytest.mark.parametrize("frozen", ("nothing", "states", "scale"))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rms_norm_is_torchs(dtype, frozen):
    inputs = norm_inputs(dtype)
    inputs[0].requires_grad_(frozen != "states"), inputs[1].requires_grad_(frozen != "scale")
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    exact = differentiated(lambda states, scale: F.rms_norm(states, (SIZE,), scale, 1e-6), doubles)
    results = differentiated(lambda states, scale: rms_norm(states, scale, 1e-6), inputs)
    assert "_RMSNorm" in type(results[0].grad_fn).__name__
    assert_near(results, exact, dtype)


def test_rms_norm_keeps_the_dtype_whoever_asks():
    states, scale = norm_inputs(torch.bfloat16)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert rms_norm(states, scale, 1e-6).dtype == torch.bfloat16


@pytest.mark.parametrize("scales", ((), (64, SIZE)), ids=("a weight", "a weight for each head"))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_norms_are_the_same_to_the_bit_with_gradients_and_without(dtype, scales):
    """The log-probabilities of PPO's first epoch are those of its rollouts; and a text's are its own in any batch."""
    states, scale = norm_inputs(dtype, (2, 64, 32, SIZE))
    scale = scale.expand(scales).clone().requires_grad_() if scales else scale
    trained = rms_norm(states, scale, 1e-6)
    with torch.no_grad():
        assert torch.equal(rms_norm(states, scale, 1e-6), trained)
        assert torch.equal(rms_norm(states[:1, :2], scale, 1e-6), trained[:1, :2])


def test_rms_norm_has_second_derivatives():
    """As a Hessian-vector product takes them: along the way to the inputs alone. Third powers carry rounding far."""
    inputs = norm_inputs(torch.float32)
    seconds = []
    for function, given in (
        (lambda states, scale: rms_norm(states, scale, 1e-6), inputs),
        (
            lambda states, scale: F.rms_norm(states, (SIZE,), scale, 1e-6),
            [x.detach().double().requires_grad_() for x in inputs],
        ),
    ):
        first = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    for mine, exact in zip(*seconds, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-3, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("width", (SIZE, SIZE // 2))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rotation_is_that_of_its_operations(dtype, width):
    """float64 takes the operations; partly rotated heads keep their other dimensions."""
    cos, sin = rotation(2, 5, width)
    query, _ = norm_inputs(dtype)
    key = (2 * query.detach()).requires_grad_()
    doubles = [x.detach().double().requires_grad_() for x in (query, key)]
    exact = differentiated(lambda *pair: torch.cat(apply_rotary(*pair, cos.double(), sin.double())), doubles)
    results = differentiated(lambda *pair: torch.cat(apply_rotary(*pair, cos, sin)), [query, key])
    assert_near(results, exact, dtype)


def test_large_rotations_are_those_of_small_ones():
    cos, sin = rotation(2, 64, SIZE)
    query = torch.randn(2, 32, 64, SIZE)
    rotated = apply_rotary(query, query, cos, sin)[0]
    assert is_large(query) and not is_large(query[:, :8])
    assert torch.equal(rotated[:, :8], apply_rotary(query[:, :8], query[:, :8], cos, sin)[0])


def test_transforms_and_traces_see_operations():
    states, scale = norm_inputs(torch.float32)
    loss = lambda states, scale: rms_norm(states, scale, 1e-6).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(states, scale), states)[0]
    torch.testing.assert_close(torch.func.grad(loss)(states, scale), expected)
    traced = torch.jit.trace(loss, (states, scale))
    assert "PythonOp" not in str(traced.graph)
    tangent = torch.ones_like(states)
    _, slope = torch.func.jvp(lambda states: loss(states, scale), (states,), (tangent,))
    torch.testing.assert_close(slope, (expected * tangent).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", ({}, {"feed_forward": "plain"}), ids=("gated", "plain"))
def test_many_tokens_are_widened_in_parts(fields, monkeypatch):
    """Where no backward pass will come, and nobody looks at whole states."""
    torch.manual_seed(0)
    mlp = get_feed_forward(LLMDecoderConfig(**SIZES, **fields), 0)
    states = torch.randn(3, 700, SIZES["hidden_size"])
    parts, linear = [], F.linear

    def record(states, weight, bias=None):
        if weight is mlp.up_proj.weight:
            parts.append(tuple(states.shape))
        return linear(states, weight, bias)

    monkeypatch.setattr(F, "linear", record)
    whole = mlp(states)
    with torch.no_grad():
        torch.testing.assert_close(mlp(states), whole, rtol=1e-5, atol=1e-6)
        handle = mlp.up_proj.register_forward_hook(lambda module, inputs, output: None)
        mlp(states)
        handle.remove()
        handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
        mlp(states)
        handle.remove()
        mlp.down_proj.forward = mlp.down_proj.forward
        mlp(states)
    assert parts == [states.shape] + 3 * [(700, SIZES["hidden_size"])] + 3 * [states.shape]


def test_modules_that_look_at_all_tokens_are_shown_all():
    """Dynamic quantisation scales by the largest of a call."""
    torch.manual_seed(0)
    mlp = get_feed_forward(LLMDecoderConfig(**SIZES), 0)
    quantised = torch.ao.quantization.quantize_dynamic(mlp, {nn.Linear}, dtype=torch.qint8)
    states = torch.randn(3, 700, SIZES["hidden_size"])
    states[0] *= 100
    with torch.no_grad():
        assert torch.equal(quantised(states), quantised.run(states))
