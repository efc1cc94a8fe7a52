"""The steps that `generate` takes for single tokens, beside the layers that they stand for."""

import contextlib
import copy
import threading

import pytest
import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from hf_llm.backends.cpu import decoding
from hf_llm.models.attention import Attention
from hf_llm.models.feedforward import FeedForward
from hf_llm.models.layer import TransformerLayer
from hf_llm.models.norms import RMSNorm

from .generating import NEW, PROMPT, VARIANTS, generate, prompts, since, tiny_model
from .tiny import EXPERTS, VOCABULARY, with_backends


pytestmark = with_backends


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static", "disable_compile": True}}
TAKEN = {
    "default": {},
    "LayerNorm with biases": {"norm_type": "layernorm", "norm_bias": True, "attention_bias": True, "mlp_bias": True},
    "unit offset": {"norm_type": "rmsnorm_unit_offset", "norm_placement": "sandwich"},
    "norms without weights": {"norm_type": "rmsnorm_non_affine"},
    "no norms of queries": {"qk_norm": None},
    "post": {"norm_placement": "post", "residual_multiplier": 0.5},
    "branch": {"norm_placement": "branch", "residual_from_norm": True},
    "a feed-forward of torch's": {"feed_forward": "plain", "hidden_act": "relu"},
    "plain feed-forward": {"feed_forward": "plain", "hidden_act": "gelu", "position_embedding": "learned"},
    "clamped gate": {"swiglu_limit": 2.0, "swiglu_alpha": 1.7},
    "a head of keys for each of queries": {"num_key_value_heads": 4},
    "a scale of its own": {"attention_scale": 1.0},
    "windows and frequencies by layer type": VARIANTS["rope by layer type"],
    "windows and shared bias": {**VARIANTS["some layers slide"], "position_embedding": "relative_bias"},
    "sliding alibi": VARIANTS["sliding alibi"],
    "no positions in a layer": VARIANTS["no positions in a layer"],
    "shared layers": VARIANTS["shared layers"],
    "factorised embeddings": VARIANTS["factorised embeddings"],
}
REFUSED = {
    "parallel": {"norm_placement": "parallel"},
    "experts": EXPERTS,
    "softcap": {"attn_logit_softcapping": 3.0},
    "sinks": {"attention_sinks": True},
    "clip": {"clip_qkv": 1.0},
    "bias per layer": VARIANTS["bias per layer"],
    "norms for each head": {"qk_norm": "per_head"},
    "norms over all heads": {"qk_norm": "full"},
    "interleaved": {"rope_interleaved": True},
    "rotated in part": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    },
    "scaled by layer": {"scale_attention_by_inverse_layer_idx": True},
}
stacks = pytest.mark.parametrize("stack", ("decoder", "encoder_decoder"))


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """Grows by one with every step."""
    counts = []
    take = decoding.TokenSteps.__call__
    monkeypatch.setattr(decoding.TokenSteps, "__call__", lambda self, *inputs: counts.append(1) or take(self, *inputs))
    return counts


@contextlib.contextmanager
def layers_alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "make_token_steps", lambda stack: None)
        yield


def assert_equal(actual, expected):
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("fields", TAKEN.values(), ids=TAKEN)
@stacks
def test_steps_are_the_layers_to_the_bit(stack, fields, batch, cache, dtype, taken):
    """Padded prompts. The first token comes of the prompt, so there is one step fewer than there are new tokens."""
    model = tiny_model(stack, **fields).to(dtype)
    inputs = prompts(batch)
    inputs["attention_mask"][0, :3] = 0
    mine = generate(model, inputs, **CACHES[cache])
    assert len(taken) == NEW - 1
    with layers_alone():
        assert_equal(mine, generate(model, inputs, **CACHES[cache]))
    assert len(taken) == NEW - 1


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
@stacks
def test_layers_that_do_more_have_no_steps(stack, fields, taken):
    generate(tiny_model(stack, **fields), prompts())
    assert not taken


@pytest.mark.parametrize("backend", ("eager", "flex_attention"))
def test_other_backends_have_no_steps(backend, taken, uncompiled):
    generate(tiny_model("decoder", backend), prompts())
    assert not taken


def hook(model):
    return model.get_decoder().layers[1].mlp.down_proj.register_forward_hook(lambda module, inputs, output: 0 * output)


def replace_forward(model):
    """As `device_map` of accelerate does."""
    norm = model.get_decoder().layers[1].mlp_norm
    norm.forward = lambda states: 0 * states


def replace_module(model):
    """As PEFT and quantisation do."""

    class Zero(nn.Linear):
        def forward(self, states):
            return 0 * super().forward(states)

    mlp = model.get_decoder().layers[1].mlp
    mlp.down_proj = Zero(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False)


def hook_all(model):
    """As tools do that look at every module of every model."""
    zeroed = model.get_decoder().layers[1].mlp.down_proj
    return nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 0 * output if module is zeroed else None
    )


@pytest.mark.parametrize("change", (hook, hook_all, replace_forward, replace_module))
@stacks
def test_what_is_done_to_a_module_is_done_to_tokens(stack, change, taken):
    """The second layer's feed-forward adds nothing, as without its weights."""
    changed, bare = tiny_model(stack), tiny_model(stack)
    handle = change(changed)
    nn.init.zeros_(bare.get_decoder().layers[1].mlp.down_proj.weight)
    mine = generate(changed, prompts())
    assert not taken
    if handle is not None:
        handle.remove()
    assert_equal(mine, generate(bare, prompts()))
    assert len(taken) == NEW - 1


class _Weight(torch.Tensor):
    """As quantised and distributed weights are."""


@pytest.mark.parametrize("wrap", (nn.Parameter, lambda weight: weight), ids=("a parameter", "an attribute"))
def test_weights_of_another_class_have_no_steps(wrap, taken):
    model = tiny_model("decoder")
    linear = model.model.layers[0].mlp.up_proj
    weight = linear.weight.detach().as_subclass(_Weight)
    del linear.weight
    linear.weight = wrap(weight)
    generate(model, prompts())
    assert not taken


@pytest.mark.parametrize("cls", (Attention, FeedForward, RMSNorm, TransformerLayer, nn.Linear))
def test_classes_that_others_have_patched_are_called(cls, taken, monkeypatch):
    """As kernels and tools that look at attention do."""
    calls, forward = [], cls.forward
    monkeypatch.setattr(
        cls, "forward", lambda self, *args, **kwargs: calls.append(1) or forward(self, *args, **kwargs)
    )
    model = tiny_model("decoder", feed_forward="plain")
    generate(model, prompts())
    assert not taken and len(calls) >= NEW * model.config.num_hidden_layers


def test_layers_that_are_compiled_are_called(taken):
    model = tiny_model("decoder")
    model.model.layers[1].compile(backend="eager")
    generate(model, prompts())
    assert not taken


@pytest.mark.parametrize("part", ("model.layers.1", "model.layers.1.mlp", "model.layers.1.self_attn"))
def test_dropout_has_no_steps(part, taken):
    """`generate` runs a model in training mode as it is."""
    dropout = dict.fromkeys(("residual_dropout", "activation_dropout", "attention_dropout"), 0.5)
    model = tiny_model("decoder", **dropout)
    model.get_submodule(part).training = True
    generate(model, prompts())
    assert not taken
    generate(model.eval(), prompts())
    assert taken


@since("5.20", "generation by a model that checkpoints, which drops its cache there")
def test_layers_that_are_computed_again_have_no_steps(taken):
    """They drop the cache."""
    model = tiny_model("decoder").train()
    model.gradient_checkpointing_enable()
    generate(model, prompts())
    assert not taken


def one_by_one(model, cache, length: int = 1, **inputs) -> list[torch.Tensor]:
    """Logits of the prompts' tokens, `length` at a time."""
    pieces = prompts()["input_ids"].split(length, dim=1)
    return [model(piece, past_key_values=cache, use_cache=True, **inputs).logits for piece in pieces]


@pytest.mark.parametrize(
    ("context", "inputs"),
    [
        (torch.no_grad, {"length": 3}),
        (torch.enable_grad, {}),
        (lambda: torch.autocast("cpu", torch.bfloat16), {}),
        (torch.no_grad, {"anything": True}),
    ],
    ids=("several tokens", "gradients", "autocast", "an unknown keyword"),
)
def test_inputs_that_ask_more_have_no_steps(context, inputs, taken):
    model = tiny_model("decoder")
    with torch.no_grad(), context():
        expected = one_by_one(model, DynamicCache(), **inputs)
        with model._optimize_model_for_decode():
            assert_equal(one_by_one(model, DynamicCache(), **inputs), expected)
    assert not taken


@pytest.mark.parametrize("context", (torch.no_grad, torch.inference_mode))
def test_tokens_that_are_given_one_by_one(context, taken):
    model = tiny_model("decoder")
    with context():
        expected = one_by_one(model, DynamicCache())
        assert not taken
        with model._optimize_model_for_decode():
            assert_equal(one_by_one(model, DynamicCache()), expected)
    assert len(taken) == PROMPT


@pytest.mark.parametrize("make_cache", (DynamicCache, lambda: EncoderDecoderCache(DynamicCache(), DynamicCache())))
def test_a_decoder_reads_states_that_are_given(make_cache, taken):
    """Keys of the source are cached, or made for every token, as the cache has a place for them or not."""
    model = tiny_model("decoder", add_cross_attention=True)
    source = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = one_by_one(model, make_cache(), encoder_hidden_states=source)
        with model._optimize_model_for_decode():
            assert_equal(one_by_one(model, make_cache(), encoder_hidden_states=source), expected)
    assert len(taken) == (0 if make_cache is DynamicCache else PROMPT - 1)


@stacks
def test_hidden_states_are_recorded(stack, taken):
    model = tiny_model(stack)
    settings = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_hidden_states": True}
    states = model.generate(**prompts(), **settings)
    states = states.hidden_states if stack == "decoder" else states.decoder_hidden_states
    count = 1 + model.get_decoder().config.num_hidden_layers
    assert [len(layers) for layers in states] == [count] * NEW
    assert not taken


def during(model, act, **kwargs):
    """`generate`, with `act()` called before every token."""

    def process(tokens, scores):
        act()
        return scores

    return generate(model, prompts(), logits_processor=[process], **kwargs)


@stacks
def test_no_steps_are_left(stack):
    """Neither after the last token, nor after a mistake."""
    model, seen = tiny_model(stack), []
    during(model, lambda: seen.append(decoding.token_steps(model.get_decoder())))
    assert len(seen) == NEW and all(steps is not None for steps in seen)
    assert decoding.token_steps(model.get_decoder()) is None

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        during(model, fail)
    assert decoding.token_steps(model.get_decoder()) is None


def test_texts_within_texts(taken):
    """Of the same model, and by another thread, where no steps of this one are."""
    model, seen = tiny_model("decoder"), []
    expected = generate(model, prompts())
    del taken[:]
    mine = during(model, lambda: generate(model, prompts()))
    assert_equal(mine, expected)
    assert len(taken) == (NEW + 1) * (NEW - 1)

    def look():
        thread = threading.Thread(target=lambda: seen.append(decoding.token_steps(model.model)))
        thread.start()
        thread.join()

    during(model, look)
    assert seen == [None] * NEW


def test_a_copy_has_its_own_weights(taken):
    model, copies = tiny_model("decoder"), []
    during(model, lambda: copies.append(copy.deepcopy(model)))
    with torch.no_grad():
        for each in (model, copies[-1]):
            for parameter in each.parameters():
                parameter.mul_(0.5)
    assert_equal(generate(copies[-1], prompts()), generate(model, prompts()))


def test_weights_may_change_between_texts(taken):
    model = tiny_model("decoder")
    before = generate(model, prompts())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    mine = generate(model, prompts())
    assert len(taken) == 2 * (NEW - 1) and not torch.equal(mine[1], before[1])
    with layers_alone():
        assert_equal(mine, generate(model, prompts()))


def test_several_texts_at_once_take_steps(taken):
    """Sampling and many sequences of one prompt."""
    torch.manual_seed(0)
    model = tiny_model("decoder")
    sampled = generate(model, prompts(), do_sample=True, num_return_sequences=3)[0]
    assert sampled.shape == (6, NEW) and int(sampled.max()) < VOCABULARY and len(taken) == NEW - 1
