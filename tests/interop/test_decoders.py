"""Every decoder family against its native class."""

import pytest

from . import parity
from .cases_gpt_like import GPT_LIKE
from .cases_llama_like import LLAMA_LIKE


CASES = {**LLAMA_LIKE, **GPT_LIKE}
ALL = [(family, case) for family, (_, cases) in CASES.items() for case in ("base", *cases)]


@pytest.mark.parametrize(("family", "case"), ALL, ids=lambda value: value)
def test_causal_lm(family, case):
    base, cases = CASES[family]
    native = parity.native_model(family, **{**base, **cases.get(case, {})})
    ours = parity.imported(native)
    parity.assert_same_logits(native, ours)
    parity.assert_round_trip(native, ours)
    if case != "base":
        parity.assert_switches_matter(native, ours, parity.imported(parity.native_model(family, **base)).config)


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
