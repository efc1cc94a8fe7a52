"""Every encoder-decoder family against its native class."""

import pytest
import torch
import transformers

from hf_llm.interop import convert, weights

from . import parity


T5 = (
    {
        "vocab_size": parity.VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 10,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    },
    {
        "depths": {"num_decoder_layers": 3},
        "head_dim": {"d_kv": 16},
        "buckets": {"relative_attention_num_buckets": 6},
        "distance": {"relative_attention_max_distance": 6},
        "relu": {"feed_forward_proj": "relu"},
        "gelu": {"feed_forward_proj": "gelu"},
        "gated relu": {"feed_forward_proj": "gated-relu"},
        "gated silu": {"feed_forward_proj": "gated-silu"},
        "gated gelu": {"feed_forward_proj": "gated-gelu"},
        "eps": {"layer_norm_epsilon": 0.1},
    },
)


BART = (
    {
        "vocab_size": parity.VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 40,
        "max_position_embeddings": 48,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
    {
        "relu": {"activation_function": "relu"},
        "swish": {"activation_function": "swish"},
        "scaled": {"scale_embedding": True},
        "depths": {"encoder_layers": 1, "decoder_layers": 3},
        "heads": {"encoder_attention_heads": 2, "decoder_attention_heads": 8},
        "widths": {"encoder_ffn_dim": 24, "decoder_ffn_dim": 56},
        "length": {"max_position_embeddings": 32},
        "untied": {"tie_word_embeddings": False},
    },
)


GEMMA_HALF = {
    "vocab_size": parity.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def gemma_halves(encoder: dict | None = None, decoder: dict | None = None, **both) -> dict[str, dict]:
    """T5Gemma's two configurations: the small one with what either or both have apart from it."""
    return {"encoder": GEMMA_HALF | both | (encoder or {}), "decoder": GEMMA_HALF | both | (decoder or {})}


T5GEMMA = (
    gemma_halves() | {"vocab_size": parity.VOCABULARY, "attention": "eager"},
    {
        "narrow encoder": gemma_halves(encoder={"hidden_size": 24, "num_attention_heads": 2}),
        "depths": gemma_halves(encoder={"num_hidden_layers": 3}, decoder={"num_hidden_layers": 1}),
        "vocabularies": gemma_halves(encoder={"vocab_size": 70}),
        "head_dim": gemma_halves(head_dim=16),
        "heads": gemma_halves(encoder={"num_key_value_heads": 4}, decoder={"num_key_value_heads": 1}),
        "biases": gemma_halves(attention_bias=True),
        "scale": gemma_halves(query_pre_attn_scalar=64),
        "windows": gemma_halves(encoder={"sliding_window": 3}, decoder={"sliding_window": 5}),
        "layers": gemma_halves(layer_types=["full_attention", "sliding_attention"]),
        "caps": gemma_halves(attn_logit_softcapping=5.0, final_logit_softcapping=9.0),
        "no caps": gemma_halves(attn_logit_softcapping=None, final_logit_softcapping=None),
        "activation": gemma_halves(hidden_activation="silu"),
        "eps": gemma_halves(rms_norm_eps=0.1),
        "theta": gemma_halves(rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
        "linear rope": gemma_halves(rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}),
        "untied": {"tie_word_embeddings": False},
    },
)


def without(case: str, family: tuple) -> tuple:
    """A family's cases but one, which is its base."""
    base, cases = family
    return base, {name: switches for name, switches in cases.items() if name != case}


# family -> its small base configuration, and cases: name -> native switches on top of it
CASES = {
    "t5": (T5[0], without("relu", T5)[1] | {"unscaled": {"tie_word_embeddings": False}}),
    "mt5": without("gated gelu", T5),
    "umt5": without("gated gelu", T5),
    "bart": BART,
    "mbart": BART,
    "pegasus": without("length", BART),
    "t5gemma": T5GEMMA,
    "marian": (
        BART[0] | {"decoder_vocab_size": parity.VOCABULARY},
        without("length", BART)[1]
        | {
            "separate": {"share_encoder_decoder_embeddings": False},
            "untied": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
            "vocabularies": {"share_encoder_decoder_embeddings": False, "vocab_size": 70},
        },
    ),
}
ALL = [(family, case) for family, (_, cases) in CASES.items() for case in ("base", *cases)]


def targets() -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": parity.inputs(length=9, seed=2)}


@torch.no_grad()
def assert_same_with_padded_targets(native, ours) -> None:
    """Padding of the decoder on either side, compared at the real tokens."""
    for gap in (slice(-3, None), slice(0, 3)):
        batch = {"input_ids": parity.inputs(), **targets()}
        mask = torch.ones_like(batch["decoder_input_ids"])
        mask[1, gap] = 0
        batch["decoder_input_ids"][1, gap] = native.config.pad_token_id
        got, wanted = (model(**batch, decoder_attention_mask=mask).logits for model in (ours, native))
        parity.assert_close(got, wanted, f"logits, targets padded at {gap}", mask)


@torch.no_grad()
def assert_same_with_cache(native, ours) -> None:
    """Targets in two parts, the second with the cache of the first, are the logits of one pass."""
    ids, decoder_ids = parity.inputs(), targets()["decoder_input_ids"]
    wanted = native(ids, decoder_input_ids=decoder_ids).logits
    for model in (native, ours):
        first = model(ids, decoder_input_ids=decoder_ids[:, :5], use_cache=True)
        rest = model(ids, decoder_input_ids=decoder_ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
        parity.assert_close(torch.cat((first.logits, rest.logits), dim=1), wanted, f"cached {type(model).__name__}")


@pytest.mark.parametrize(("family", "case"), ALL, ids=lambda value: value)
def test_conditional_generation(family, case):
    base, cases = CASES[family]
    native = parity.native_model(family, **{**base, **cases.get(case, {})})
    ours = parity.imported(native)
    parity.assert_same_logits(native, ours, **targets())
    assert_same_with_padded_targets(native, ours)
    parity.assert_same_configuration(native, parity.assert_round_trip(native, ours))
    if case != "base":
        base_config = parity.imported(parity.native_model(family, **base)).config
        parity.assert_switches_matter(native, ours, base_config, **targets())


@pytest.mark.parametrize("family", CASES)
def test_loss_cache_generation_and_saving(family, tmp_path):
    native = parity.native_model(family, **CASES[family][0])
    ours = parity.imported(native)
    parity.assert_same_loss(native, ours)
    assert_same_with_cache(native, ours)
    parity.assert_same_generation(native, ours)
    parity.assert_same_configuration(native, parity.assert_saved_opens(native, ours, tmp_path))


HEADS = [(f, h) for f in CASES for h in (*parity.FAMILIES[f].heads, "Model") if h != "ForConditionalGeneration"]


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_heads(family, head, side):
    labels = {} if head == "ForQuestionAnswering" else {"num_labels": 3}
    native = parity.native_model(family, head, **labels, **CASES[family][0])
    ours = parity.imported(native)
    gap = slice(-4, None) if side == "right" else slice(0, 4)
    ids = parity.inputs()
    mask = torch.ones_like(ids)
    mask[1, gap] = 0
    ids[1, gap] = native.config.pad_token_id
    ids[0, 5] = ids[0, -2] = ids[1, 5] = ids[1, 6] = native.config.eos_token_id
    batch = {"input_ids": ids, "attention_mask": mask} | (targets() if head == "Model" else {})
    if family == "t5gemma" and head != "Model":  # whose decoder does not see padding; ours is told
        batch["decoder_attention_mask"] = torch.cat((torch.ones_like(mask[:, :1]), mask[:, :-1]), dim=-1)
    got, wanted = ours(**batch), native(**batch)
    for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
        if name in wanted:
            seen = batch.get("decoder_attention_mask") if head == "ForTokenClassification" else None
            parity.assert_close(got[name], wanted[name], name, seen)
    parity.assert_same_configuration(native, parity.assert_round_trip(native, ours))


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
def test_an_untied_head_is_seen_in_the_weights(family, tmp_path):
    native = parity.native_model(family, **CASES[family][0])
    weights.untie_head(native)
    parity.redraw(native, tie=False)
    ours = parity.imported(native)
    assert not ours.config.tie_word_embeddings
    parity.assert_same_logits(native, ours, **targets())
    parity.assert_round_trip(native, ours)
    parity.assert_saved_opens(native, ours, tmp_path)


def test_what_scales_t5s_output_survives_saving(tmp_path):
    base, cases = CASES["t5"]
    for name, scaled in (("base", True), ("unscaled", False)):
        native = parity.native_model("t5", **{**base, **cases.get(name, {})})
        reopened = parity.assert_saved_opens(native, parity.imported(native), tmp_path / name)
        assert native.config.scale_decoder_outputs == reopened.config.scale_decoder_outputs == scaled


def test_a_position_table_that_is_not_the_computed_one_is_refused():
    native = parity.native_model("pegasus", **BART[0])
    with torch.no_grad():
        native.model.encoder.embed_positions.weight[3, 4] += 0.01
    with pytest.raises(convert.InteropError, match="embed_positions.weight is not the table"):
        parity.imported(native)


def test_a_text_without_an_end_token_has_no_class():
    ours = parity.imported(parity.native_model("bart", "ForSequenceClassification", **BART[0]))
    with pytest.raises(ValueError, match="no `eos_token_id=2`"):
        ours(parity.inputs())


def test_token_classification_of_t5_is_refused():
    native = transformers.T5ForTokenClassification(transformers.T5Config(**CASES["t5"][0]))
    with pytest.raises(convert.InteropError, match="no head like 'ForTokenClassification'"):
        parity.imported(native)
