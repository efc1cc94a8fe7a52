"""Training: checkpointed, compiled and spread over ranks, a step has the gradients of a plain one."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from .tiny import EXPERTS, STACKS, inputs_of, logits_of, packed_batch, tiny_model


WINDOW = {"layer_types": "SL", "sliding_window": 3}
CONFIGURATIONS = {
    "default": {},
    "experts": EXPERTS | {"router_aux_loss_coef": 0.5},
    "relative_bias": {"position_embedding": "relative_bias"},
    "relative_bias_per_layer": {"position_embedding": "relative_bias", "relative_attention_bias_per_layer": True},
    "parallel_dropout": {"norm_placement": "parallel", "residual_dropout": 0.3, "attention_dropout": 0.2},
    "shared_layers": {"layer_sharing": [0, 0]},
}


def step(model, batch, run=None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one training step, from the same random state each time."""
    model.train().zero_grad()
    torch.manual_seed(0)
    loss = (model if run is None else run)(**batch).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("reentrant", (False, True))
def test_gradient_checkpointing_changes_no_gradient(stack, name, reentrant):
    """Router losses and biases that all layers share included, and dropout drawn again as it was. Reentrant
    checkpoints would lose the gradients of router losses, and are refused."""
    model = tiny_model(stack, **CONFIGURATIONS[name])
    batch = packed_batch(stack)
    expected = step(model, batch)
    calls = []
    layer = (model.model.decoder if stack == "encoder_decoder" else model.model).layers[0]
    layer.mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    if reentrant and name == "experts":
        for enable in (model.activation_checkpointing_enable, model.gradient_checkpointing_enable):
            with pytest.raises(ValueError, match="use_reentrant"):
                enable({"use_reentrant": reentrant})
        return
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    actual = step(model, batch)
    assert len(calls) == 2 * (2 if name == "shared_layers" else 1)  # forward, and once more in the backward pass
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


HALF = {
    "default": {},
    "experts": EXPERTS | {"expert_bias": True, "router_bias": True},
    "biases": {"position_embedding": "relative_bias", "norm_type": "layernorm", "norm_bias": True, "qk_norm": "full"},
    "alibi": {"position_embedding": "alibi", "qk_norm": "per_head", "embedding_multiplier": 3.0},
    "sinusoidal": {"position_embedding": "sinusoidal", "residual_multiplier": 0.5},
    "gemma": {"norm_type": "rmsnorm_unit_offset", "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "sinks": {"attention_sinks": True, "layer_types": "SL", "sliding_window": 3},
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_near_float32(stack, name):
    """Autocast, and parameters in bfloat16 and float16: the loss is close, in float32, and gradients are finite."""
    model, batch = tiny_model(stack, **HALF[name]), packed_batch(stack)
    expected, _ = step(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [step(model, batch)]
    losses += [step(model.to(dtype), batch) for dtype in (torch.bfloat16, torch.float16)]
    for loss, gradients in losses:
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)
        assert all(gradient.isfinite().all() for gradient in gradients.values())


# -- compilation ------------------------------------------------------------------------------------------------------


COMPILED = {
    "default": {},
    "window": WINDOW,
    "experts": EXPERTS,
    "relative_bias": {"position_embedding": "relative_bias"},
    "softcap_sinks": {"attention_sinks": True, "attn_logit_softcapping": 3.0},
    # not "dynamic" or "longrope": transformers chooses their frequencies by the largest position, in Python
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}},
    "untied": {"tie_word_embeddings": False, "lm_head_bias": True, "final_logit_softcapping": 3.0},
}


def assert_compiles(stack: str, fields: dict, compiler: str) -> None:
    """One graph for the forward pass and one for the training step of a packed batch."""
    model = tiny_model(stack, **fields)
    inputs, batch = inputs_of(stack), packed_batch(stack)
    expected_logits, expected = logits_of(model, inputs), step(model, batch)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    torch.testing.assert_close(step(model, batch, compiled), expected, rtol=1e-4, atol=1e-5)
    model.eval()
    torch.testing.assert_close(logits_of(compiled, inputs), expected_logits, rtol=0, atol=1e-5)


def test_a_layer_compiles(fresh_compiler):
    assert_compiles("decoder", {"num_hidden_layers": 1}, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", COMPILED)
def test_every_stack_compiles(stack, name, fresh_compiler):
    assert_compiles(stack, COMPILED[name], "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("stack", ("decoder", "encoder_decoder"))
def test_compiled_code_computes_the_same(stack, fresh_compiler):
    """With torch's own compiler."""
    assert_compiles(stack, WINDOW, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_gradient_checkpointing_compiles(stack, fresh_compiler):
    model = tiny_model(stack)
    batch = packed_batch(stack)
    expected = step(model, batch)
    model.activation_checkpointing_enable()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(model, batch, compiled), expected, rtol=1e-4, atol=1e-5)


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("fields", ({}, EXPERTS), ids=("default", "experts"))
def test_plans_name_what_exists(stack, fields):
    """Tensor-parallel and FSDP plans; what a plan does not name stays whole on every rank."""
    model = tiny_model(stack, **fields)
    names = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    for plan in (model._tp_plan, model._fsdp_plan):
        assert "lm_head" in plan
    matched = {
        name for name in names for pattern in model._tp_plan
        if len(parts := name.split(".")) == len(pattern.split("."))
        and all(wanted in ("*", part) for wanted, part in zip(pattern.split("."), parts))
    }  # fmt: skip
    half = "decoder." if stack == "encoder_decoder" else ""
    wanted = {f"model.{half}layers.1.self_attn.{part}_proj" for part in "qkvo"} | {"lm_head"}
    wanted |= {f"model.{half}layers.1.mlp." + ("experts" if fields else "down_proj")}
    if half:
        wanted |= {f"model.{half}layers.1.cross_attn.q_proj", "model.encoder.layers.0.self_attn.q_proj"}
    assert wanted <= matched


@pytest.mark.parametrize(
    "fields",
    [
        {"position_embedding": "learned"},
        {"position_embedding": "sinusoidal"},
        {"position_embedding": "alibi"},
        {"position_embedding": "relative_bias"},
        {"embedding_norm": True},
        {"embedding_size": 16, "embedding_projection": "tokens"},
        {"type_vocab_size": 2},
        {"layer_sharing": [0, 0]},
        {"final_norm": False},
        EXPERTS,
    ],
)
def test_a_pipeline_is_refused_where_it_would_be_wrong(fields):
    """transformers' schedule knows embed_tokens, layers, norm and lm_head alone, and does not ask for a plan."""
    model = tiny_model("decoder", **fields)
    assert not model.supports_pp_plan and tiny_model("decoder").supports_pp_plan
    with pytest.raises(ValueError, match="pp_size=2"):
        model.maybe_distribute_model(model, SimpleNamespace(pp_size=2), mesh_manager=object())


# -- ranks ------------------------------------------------------------------------------------------------------------


RANKS = {
    "decoder": ("decoder", {}),
    "encoder": ("encoder", {"attention_bias": True, "mlp_bias": True, "qk_norm": None, "feed_forward": "plain"}),
    "encoder_decoder": ("encoder_decoder", {}),
    "parallel": ("decoder", {"norm_placement": "parallel", "norm_type": "layernorm", "norm_bias": True}),
    "untied": ("decoder", {"tie_word_embeddings": False, "lm_head_bias": True, "logit_scale": 0.5}),
    "alibi": ("decoder", {"position_embedding": "alibi"}),
    "relative_bias": ("encoder_decoder", {"position_embedding": "relative_bias"}),
    "sinks": ("decoder", {"attention_sinks": True}),
    "qk_norm_full": ("decoder", {"qk_norm": "full"}),
    "qk_norm_per_head": ("decoder", {"qk_norm": "per_head"}),
    "window": ("decoder", WINDOW | {"attn_logit_softcapping": 2.0}),
    "experts": ("decoder", EXPERTS),
    "experts_shared": ("decoder", EXPERTS | {"shared_expert_intermediate_size": 16, "shared_expert_gate": True}),
    "experts_plain": ("decoder", EXPERTS | {"feed_forward": "plain"}),
    "experts_biased": ("decoder", EXPERTS | {"expert_bias": True, "router_bias": True}),
}


PIPELINES = ("decoder", "parallel", "untied", "window", "qk_norm_full")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("tensor", "fsdp", "pipeline"))
def test_two_ranks_give_what_one_gives(mode, tmp_path):
    """Logits and, but for pipelines, training loss and gradients, on two processes with gloo."""
    folders = []
    for name, (stack, fields) in RANKS.items():
        if mode == "pipeline" and name not in PIPELINES:
            continue
        folders.append(tmp_path / name)
        tiny_model(stack, **fields).save_pretrained(folders[-1])
        batch = packed_batch(stack, lengths=((4, 3, 5), (6, 6)), padding=0, target_lengths=((3, 5, 2), (4, 6)))
        safetensors.torch.save_file(batch, folders[-1] / "batch.safetensors")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(__file__).with_name("ranks.py")), mode, *map(str, folders)]
    run = subprocess.Popen(
        [sys.executable, *command, *script], env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        output, errors = run.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # the ranks too
        raise
    assert run.returncode == 0, errors[-4000:]
    assert output.split() == [folder.name for folder in folders]
