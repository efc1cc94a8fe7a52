"""torch.func takes a model's own loss, as it takes Llama's: gradients of it, those of each example, ensembles."""

import pytest
import torch
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from transformers import LlamaConfig, LlamaForCausalLM

from .tiny import EXPERTS, SIZES, STACKS, inputs_of, packed_batch, redraw, tiny_model


LLAMA = "llama"  # the control
FIELDS = {LLAMA: {}, **dict.fromkeys(STACKS, {}), "experts": EXPERTS | {"router_aux_loss_coef": 0.0}}
backends = pytest.mark.parametrize("backend", ("sdpa", "eager"))
names = pytest.mark.parametrize("name", FIELDS)
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:Converting a tensor")


def make(name: str, backend: str, seed: int = 0) -> torch.nn.Module:
    if name == LLAMA:
        config = LlamaConfig(**SIZES, attn_implementation=backend, use_cache=False)
        return redraw(LlamaForCausalLM(config), seed).train()
    return tiny_model(name if name in STACKS else "decoder", backend, seed, **FIELDS[name]).train()


def batch_of(name: str) -> dict[str, torch.Tensor]:
    """Padded rows with the same number of targets, so that a mean over examples is the mean over targets."""
    batch = inputs_of(name if name in STACKS else "decoder", length=9)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"]).index_fill(1, torch.tensor([7, 8]), 0)
    targets = batch.get("decoder_input_ids", batch["input_ids"])
    return {**batch, "labels": targets.index_fill(1, torch.tensor([0, 6, 7, 8])[: targets.shape[1] - 5], -100)}


def loss_of(model, batch):
    return lambda parameters: functional_call(model, parameters, (), batch).loss


@backends
@names
def test_gradients_of_a_loss(name, backend):
    """Those of `backward`, also of packed documents; and the directional derivative that they give."""
    model = make(name, backend)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    packed = [] if name == LLAMA else [packed_batch(name if name in STACKS else "decoder")]
    for batch in (batch_of(name), *packed):
        model.zero_grad()
        model(**batch).loss.backward()
        expected = {name: parameter.grad for name, parameter in model.named_parameters()}
        found = grad(loss_of(model, batch))(parameters)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    if backend == "eager" and name != "experts":  # sdpa and grouped products have no forward mode in torch
        tangents = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
        _, slope = jvp(loss_of(model, batch), (parameters,), (tangents,))
        expected = sum((found[name] * tangents[name]).sum() for name in found)
        torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-4)


@backends
@names
def test_gradients_of_each_example(name, backend):
    if name == LLAMA and backend == "sdpa":
        pytest.skip("transformers looks for padding in the mask")
    model, batch = make(name, backend), batch_of(name)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    model(**batch).loss.backward()

    def one(parameters, example):
        return loss_of(model, {name: value[None] for name, value in example.items()})(parameters)

    found = vmap(grad(one), in_dims=(None, 0))(parameters, batch)
    mean = {name: gradient.mean(0) for name, gradient in found.items()}
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)


@names
def test_an_ensemble(name):
    models, batch = [make(name, "sdpa", seed) for seed in range(2)], batch_of(name)
    parameters, buffers = stack_module_state(models)
    losses = vmap(lambda *state: functional_call(models[0], state, (), batch).loss)(parameters, buffers)
    torch.testing.assert_close(losses, torch.stack([model(**batch).loss for model in models]), rtol=1e-4, atol=1e-5)
