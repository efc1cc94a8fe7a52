"""The operators of the core and what backends enter in their place."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_llm import backends
from hf_llm.backends.cpu import decoding
from hf_llm.models.attention import ATTENTIONS, FASTER_ATTENTION, Attention
from hf_llm.models.feedforward import FEED_FORWARDS, GatedFeedForward
from hf_llm.models.layer import PLACEMENTS, Placement
from hf_llm.models.norms import NORMS, RMSNorm
from hf_llm.models.operators import OPERATORS
from hf_llm.models.visibility import LENGTHS

from .generating import NEW, generate, prompts, tiny_model
from .tiny import STACKS, VOCABULARY, with_backends


def packed(stack: str) -> dict:
    """Three documents in two rows, with labels."""
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 4 + [2] * 5])
    batch = {"input_ids": ids, "labels": ids, "document_ids": documents}
    if stack == "encoder_decoder":
        batch |= {"decoder_input_ids": ids, "decoder_document_ids": documents}
    return batch


def loss_and_gradients(model, batch) -> list[torch.Tensor]:
    loss = model.train()(**batch).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


@pytest.mark.parametrize("norm_placement", PLACEMENTS)
@pytest.mark.parametrize("stack", STACKS)
def test_plain_forms_compute_the_same(stack, norm_placement, request):
    model = tiny_model(stack, norm_placement=norm_placement)
    ours = loss_and_gradients(model, packed(stack))
    request.getfixturevalue("without_backends")
    for mine, plain in zip(ours, loss_and_gradients(model, packed(stack)), strict=True):
        assert (mine is None) == (plain is None)
        if mine is not None:
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "entered"),
    [
        ("none", set()),
        ("cross_entropy", {"summed_cross_entropy"}),
        ("cpu", {"rms_norm", "rotate_halves", "feed_forward", "decoding", "decode_token"}),
    ],
)
def test_the_environment_chooses_backends(value, entered, monkeypatch, without_backends):
    monkeypatch.setenv("HF_LLM_BACKENDS", value)
    backends.register()
    assert {name for name, forms in OPERATORS.items() if forms} == entered
    assert bool(FASTER_ATTENTION) == ("sdpa" in LENGTHS) == (value == "cpu")


def test_an_unknown_backend_is_named(monkeypatch):
    monkeypatch.setenv("HF_LLM_BACKENDS", "cpu,tpu")
    with pytest.raises(ValueError, match="names 'tpu', but knows only: none, cpu, cross_entropy, liger"):
        backends.register()


@pytest.mark.parametrize("stack", STACKS)
def test_a_users_sdpa_is_called(stack, monkeypatch):
    """On a CPU as well, with masks in place of lengths, and for each token that is generated."""
    calls = []

    def attend(module, query, key, value, attention_mask, **kwargs):
        assert "segment_lengths" not in kwargs
        calls.append(1)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    model = tiny_model(stack).eval()
    with torch.no_grad():
        expected = model(**packed(stack)).logits
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", attend)
        torch.testing.assert_close(model(**packed(stack)).logits, expected, rtol=1e-5, atol=1e-5)
    assert calls
    if stack != "encoder":
        del calls[:]
        generate(model, prompts())
        assert len(calls) >= NEW * model.get_decoder().config.num_hidden_layers


class Halved(Attention):
    def output(self, attended, hidden_states):
        return super().output(attended, hidden_states) / 2


class Renamed(Attention):
    """A subclass that changes nothing."""


class Squared(GatedFeedForward):
    def activate(self, hidden_states):
        return super().activate(hidden_states).square()


class Shifted(RMSNorm):
    def scale(self):
        return self.weight + 0.5


VARIANTS = {
    "attention_type": (ATTENTIONS, Halved),
    "an unchanged subclass": (ATTENTIONS, Renamed),
    "feed_forward": (FEED_FORWARDS, Squared),
    "norm_type": (NORMS, Shifted),
}


def refuses_steps(model) -> bool:
    with torch.no_grad(), model._optimize_model_for_decode():
        return decoding.token_steps(model.get_decoder()) is None


@with_backends
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_never_bypassed(name, monkeypatch):
    """Tokens that are generated with a cache are those without."""
    table, cls = VARIANTS[name]
    monkeypatch.setattr(table, "built_in", table.built_in)
    dict.__setitem__(table, "variant", cls)
    try:
        model = tiny_model("decoder", **{table.setting: "variant"})
        assert refuses_steps(model)
        cached, uncached = (generate(model, prompts(), use_cache=use)[0] for use in (True, False))
        assert torch.equal(cached, uncached)
    finally:
        dict.__delitem__(table, "variant")


@with_backends
@pytest.mark.parametrize("change", ("a method of the class", "a method of one layer", "a form", "the wiring"))
def test_changes_are_never_bypassed(change, monkeypatch):
    model = tiny_model("decoder")
    assert not refuses_steps(model)
    layer = model.model.layers[1]
    if change == "a method of the class":
        monkeypatch.setattr(Attention, "output", lambda self, attended, hidden_states: self.o_proj(attended))
    elif change == "a method of one layer":
        layer._add = lambda residual, output: residual + output
    elif change == "a form":
        monkeypatch.setitem(OPERATORS["rms_norm"], "cpu", lambda *inputs: inputs[0])
    else:
        layer.placement = tuple(layer.placement)
    assert refuses_steps(model)


@with_backends
def test_a_new_placement_is_one_row(monkeypatch):
    """Layers are wired by it, and so are the steps."""
    dict.__setitem__(PLACEMENTS, "around", Placement(inputs="norm", output="output_norm", sum="sum_norm"))
    try:
        model = tiny_model("decoder", norm_placement="around")
        assert isinstance(model.model.layers[0].mlp_sum_norm, nn.Module)
        assert not refuses_steps(model)
        stepped = generate(model, prompts())
        monkeypatch.setattr(decoding, "make_token_steps", lambda stack: None)
        for mine, layers in zip(stepped, generate(model, prompts()), strict=True):
            assert torch.equal(mine, layers)
    finally:
        dict.__delitem__(PLACEMENTS, "around")
