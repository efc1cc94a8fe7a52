"""Every decoder family against its native class."""

import pytest

from . import parity


SMALL = {
    "vocab_size": parity.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# family -> its small base configuration, and cases: name -> native switches on top of it
CASES = {
    "llama": (
        SMALL,
        {
            "biases": {"attention_bias": True, "mlp_bias": True},
            "tied": {"tie_word_embeddings": True},
            "head_dim": {"head_dim": 16},
            "mha": {"num_key_value_heads": 4},
            "llama3": {"rope_parameters": LLAMA3_ROPE},
            "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
            "gelu": {"hidden_act": "gelu"},
        },
    ),
}
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
    native = parity.native_model(family, head, num_labels=3, **CASES[family][0])
    ours = parity.imported(native)
    got, wanted = ours(parity.inputs()), native(parity.inputs())
    for name in ("logits", "start_logits", "end_logits"):
        if name in wanted:
            parity.assert_close(got[name], wanted[name], name)
    parity.assert_round_trip(native, ours)
