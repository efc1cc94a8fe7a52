"""Every decoder family against its native class."""

import functools

import pytest
import torch

from hf_llm.interop import convert

from . import parity
from .cases_gpt_like import GPT_LIKE
from .cases_llama_like import LLAMA_LIKE


CASES = {**LLAMA_LIKE, **GPT_LIKE}
ALL = [(family, case) for family, (_, cases) in CASES.items() for case in ("base", *cases)]
# what a cache must get right: windows, layers that differ, frequencies that depend on the length
CACHED = [(f, c) for f, c in ALL if any(word in c for word in ("window", "layer", "rope", "dynamic", "all-", "local"))]
CACHED.remove(
    ("llama", "longrope")
)  # native Llama keeps keys that were rotated by the short frequencies; Phi-3 does not
WITH_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")


@functools.cache
def base_config(family):
    return parity.imported(parity.native_model(family, **CASES[family][0])).config


@pytest.mark.parametrize(("family", "case"), ALL, ids=lambda value: value)
def test_causal_lm(family, case):
    base, cases = CASES[family]
    native = parity.native_model(family, **{**base, **cases.get(case, {})})
    ours = parity.imported(native)
    parity.assert_same_logits(native, ours)
    back = parity.assert_round_trip(native, ours)
    again = convert.to_our_config(parity.FAMILIES[family], back.config)
    assert again.to_dict() == ours.config.to_dict()
    if case != "base":
        parity.assert_switches_matter(native, ours, base_config(family))


@pytest.mark.parametrize(("family", "case"), CACHED, ids=lambda value: value)
def test_generation(family, case):
    base, cases = CASES[family]
    native = parity.native_model(family, **{**base, **cases[case]})
    parity.assert_same_generation(native, parity.imported(native))


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_load_balancing_loss(family):
    switches = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    native = parity.native_model(family, **CASES[family][0], **switches)
    ours = parity.imported(native)
    parity.assert_same_loss(native, ours)
    ids = parity.inputs()
    with torch.no_grad():
        parity.assert_close(ours(ids, labels=ids).aux_loss, native(ids, labels=ids).aux_loss, "load-balancing loss")


@pytest.mark.parametrize("family", CASES)
def test_loss_generation_and_saving(family, tmp_path):
    native = parity.native_model(family, **CASES[family][0])
    ours = parity.imported(native)
    parity.assert_same_loss(native, ours)
    parity.assert_same_generation(native, ours)
    parity.assert_saved_opens(native, ours, tmp_path)


@pytest.mark.parametrize(
    ("family", "head"), [(f, h) for f in CASES for h in parity.FAMILIES[f].heads if h != "ForCausalLM"]
)
def test_heads(family, head):
    labels = {} if head == "ForQuestionAnswering" else {"num_labels": 3}
    native = parity.native_model(family, head, **labels, **CASES[family][0])
    ours = parity.imported(native)
    got, wanted = ours(parity.inputs()), native(parity.inputs())
    for name in ("logits", "start_logits", "end_logits"):
        if name in wanted:
            parity.assert_close(got[name], wanted[name], name)
    parity.assert_round_trip(native, ours)


@pytest.mark.parametrize("family", CASES)
def test_without_a_head(family):
    native = parity.native_model(family, "Model", **CASES[family][0])
    ours = parity.imported(native)
    with torch.no_grad():
        got, wanted = (model(parity.inputs()).last_hidden_state for model in (ours, native))
    parity.assert_close(got, wanted, "last_hidden_state")
    parity.assert_round_trip(native, ours)
