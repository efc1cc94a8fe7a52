"""Attention on a CPU beside torch's: values and gradients, segments, windows, and which of the two runs."""

import pytest
import torch
import torch._dynamo.testing
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hf_llm.backends.cpu import attention as cpu_attention
from hf_llm.backends.cpu.attention import blockwise_attention, cpu_attention_forward


HEADS, KEY_HEADS, DIM = 6, 2, 8
LENGTHS = {
    "one block": ((5, 5),),
    "several blocks": ((300, 300),),
    "segments": ((3, 3), (130, 130), (1, 1), (7, 7)),
    "many segments": tuple((n, n) for n in range(1, 30)),
    "no keys for a block": ((130, 0), (3, 5)),
    "cross": ((3, 5), (4, 0), (0, 2), (140, 9), (2, 200)),
}


def states(lengths, batch: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Query, key and value as the projections give them: heads behind tokens in memory."""
    torch.manual_seed(0)
    sizes = [(sum(q for q, _ in lengths), HEADS), *[(sum(k for _, k in lengths), KEY_HEADS)] * 2]
    return [torch.randn(batch, n, heads, DIM, dtype=dtype).transpose(1, 2).requires_grad_() for n, heads in sizes]


def reference(query, key, value, scaling, causal, lengths) -> torch.Tensor:
    """torch's attention under a mask of whole rows; queries without keys get zeros."""
    numbers = [torch.arange(len(lengths)).repeat_interleave(torch.tensor(side)) for side in zip(*lengths, strict=True)]
    mask = numbers[0][:, None] == numbers[1]
    if causal:
        mask &= torch.ones_like(mask).tril()
    output = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True)
    return output.masked_fill(~mask.any(-1)[:, None], 0.0).transpose(1, 2)


def blockwise(query, key, value, scaling, causal, lengths) -> torch.Tensor:
    return blockwise_attention(query, key, value, scaling=scaling, segments=lengths, causal=causal)


CROSS = [name for name, lengths in LENGTHS.items() if any(queries != keys for queries, keys in lengths)]
CASES = [(name, causal) for name in LENGTHS for causal in (True, False) if not (causal and name in CROSS)]


@pytest.mark.parametrize("kept", [2**23, 0], ids=["kept", "computed again"])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_blocks_are_torchs_attention(name, causal, kept, monkeypatch):
    monkeypatch.setattr(cpu_attention, "KEPT_ELEMENTS", kept)
    inputs = states(LENGTHS[name], batch=2)
    results = []
    for attend in (blockwise, reference):
        output = attend(*inputs, 0.3, causal, LENGTHS[name])
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        results.append([output, *torch.autograd.grad(output, inputs, direction)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-6)  # sums of gradients over blocks are float32


def test_bfloat16_is_as_exact_as_torchs_kernel():
    """Errors against float64, of the output and of each gradient, are at most twice those of torch's kernel."""
    exact = states(((300, 300),), batch=2)
    errors = []
    for attend in (blockwise, reference):
        inputs = [x.detach().bfloat16().requires_grad_() for x in exact]
        doubles = [x.detach().double().requires_grad_() for x in inputs]
        output, truth = (f(*x, DIM**-0.5, True, ((300, 300),)) for f, x in ((attend, inputs), (reference, doubles)))
        direction = torch.randn(truth.shape, dtype=torch.float64).bfloat16()
        made = [output, *torch.autograd.grad(output, inputs, direction)]
        true = [truth, *torch.autograd.grad(truth, doubles, direction.double())]
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(made, true, strict=True)])
    assert all(0 < ours < max(2 * theirs, 0.01) for ours, theirs in zip(*errors, strict=True)), errors


def runs_blockwise(output: torch.Tensor) -> bool:
    return "BlockwiseAttention" in type(output.grad_fn).__name__


class KeySizes(TorchFunctionMode):
    """Shapes of the keys that torch's attention is given."""

    def __init__(self):
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.seen.append(args[1].shape)
        return function(*args, **(kwargs or {}))


class Module(torch.nn.Module):
    num_key_value_groups = HEADS // KEY_HEADS


def attend(inputs, lengths, **kwargs) -> torch.Tensor:
    return cpu_attention_forward(Module(), *inputs, scaling=0.3, segment_lengths=lengths, **kwargs)[0]


@pytest.mark.parametrize(("name", "causal"), CASES)
def test_segments_without_gradients(name, causal):
    with torch.no_grad():
        inputs = states(LENGTHS[name], batch=1, dtype=torch.float32)
        expected = reference(*inputs, 0.3, causal, LENGTHS[name])
        torch.testing.assert_close(attend(inputs, LENGTHS[name], is_causal=causal), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", ["none", "bool", "heads"])
def test_a_single_query_reads_each_key_once(mask):
    """The heads that share keys become queries: keys are not repeated, whatever the mask."""
    query, key, value = (x[:, :, :1] if n == 0 else x for n, x in enumerate(states(((9, 9),), 2, torch.float32)))
    masks = {
        "none": None,
        "bool": torch.arange(9)[None, None, None] >= torch.tensor([3, 0])[:, None, None, None],
        "heads": torch.randn(1, query.shape[1], 1, 9),
    }
    expected = F.scaled_dot_product_attention(query, key, value, masks[mask], scale=0.3, enable_gqa=True)
    with torch.no_grad(), KeySizes() as sizes:
        output = attend((query, key, value), None, is_causal=True, attention_mask=masks[mask])
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)
    assert set(sizes.seen) == {key.shape}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_windows_of_segments(causal, dtype):
    lengths, window = ((209, 209), (2, 2), (50, 50)), 40
    inputs = states(lengths, batch=1, dtype=dtype)
    number = torch.arange(3).repeat_interleave(torch.tensor([209, 2, 50]))
    distance = torch.arange(261)[:, None] - torch.arange(261)
    mask = (number[:, None] == number) & (distance < window) & (distance >= 0 if causal else distance > -window)
    doubles = [x.double() for x in inputs]
    expected = F.scaled_dot_product_attention(*doubles, mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    output = attend(inputs, lengths, is_causal=causal, sliding_window=window)
    tolerance = 1e-6 if dtype == torch.float64 else 0.03
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "changes", "runs"),
    [
        (torch.bfloat16, {}, True),
        (torch.float32, {}, False),
        (torch.bfloat16, {"dropout": 0.1}, False),
        (torch.bfloat16, {"sliding_window": 4}, True),
    ],
)
def test_blocks_run_where_they_are_faster_and_say_the_same(dtype, changes, runs):
    inputs = states(((5, 5),), batch=1, dtype=dtype)
    output = attend(inputs, ((5, 5),), is_causal=True, **changes)
    assert runs_blockwise(output) is runs
    with torch.no_grad():
        assert attend(inputs, ((5, 5),), is_causal=True).grad_fn is None


def test_rotated_queries_are_cast_under_autocast():
    """Rotation gives float32, as its angles are; torch's kernel would be given bfloat16."""
    inputs = states(((5, 5),), batch=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = attend(inputs, None, is_causal=True)
    assert runs_blockwise(output) and output.dtype == torch.bfloat16


def test_a_compiled_model_attends_in_blocks(fresh_compiler):
    """In one graph, forward and backward, though the operator computes with the lengths of blocks."""
    inputs = states(((300, 300),), batch=2, dtype=torch.bfloat16)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, attend):
        output = function(inputs, None, is_causal=True)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        results.append([output, *torch.autograd.grad(output, inputs, direction)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_compiler_makes_one_graph_for_all_lengths(fresh_compiler):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=counter, dynamic=True)
    for batch, length in ((2, 20), (3, 30), (4, 300), (5, 301), (6, 40), (7, 51), (2, 260)):
        for causal in (True, False):
            inputs = states(((length, length),), batch=batch, dtype=torch.bfloat16)
            expected = attend(inputs, None, is_causal=causal)
            output = compiled(inputs, None, is_causal=causal)
            torch.testing.assert_close(output, expected, rtol=0, atol=0)
            output.sum().backward()
    assert counter.frame_count <= 5  # for 14 calls
