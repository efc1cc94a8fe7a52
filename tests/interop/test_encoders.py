"""Every encoder family against its native class."""

import pytest
import torch
import transformers

from hf_llm.interop import convert

from . import parity


SMALL = {
    "vocab_size": parity.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT_CASES = {
    "relu": {"hidden_act": "relu"},
    "eps": {"layer_norm_eps": 0.1},
    "untied": {"tie_word_embeddings": False},
    "heads": {"num_attention_heads": 2},
    "types": {"type_vocab_size": 2},
    "length": {"max_position_embeddings": 48},
}
ROBERTA = (SMALL | {"pad_token_id": 1, "bos_token_id": 0}, BERT_CASES | {"pad": {"pad_token_id": 2}})

# family -> its small base configuration, and cases: name -> native switches on top of it
CASES = {
    "bert": (SMALL, BERT_CASES),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "distilbert": (
        {
            "vocab_size": parity.VOCABULARY,
            "dim": 32,
            "hidden_dim": 40,
            "n_layers": 3,
            "n_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
        {
            "relu": {"activation": "relu"},
            "untied": {"tie_word_embeddings": False},
            "heads": {"n_heads": 2},
            "length": {"max_position_embeddings": 48},
        },
    ),
    "albert": (
        SMALL | {"embedding_size": 16},
        BERT_CASES
        | {
            "wide": {"embedding_size": 32},
            "groups": {"num_hidden_layers": 4, "num_hidden_groups": 2},
            "uneven": {"num_hidden_groups": 2},
            "unshared": {"num_hidden_groups": 3},
            "inner": {"inner_group_num": 2},
            "inner groups": {"num_hidden_groups": 2, "inner_group_num": 2},
        },
    ),
    "electra": (SMALL | {"embedding_size": 16}, BERT_CASES | {"wide": {"embedding_size": 32}}),
    "modernbert": (
        {name: value for name, value in SMALL.items() if name != "type_vocab_size"}
        | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 6},
        {
            "attention biases": {"attention_bias": True},
            "mlp biases": {"mlp_bias": True},
            "norm biases": {"norm_bias": True},
            "head bias": {"classifier_bias": True},
            "no decoder bias": {"decoder_bias": False},
            "head activation": {"classifier_activation": "relu"},
            "activation": {"hidden_activation": "silu"},
            "eps": {"norm_eps": 0.1},
            "untied": {"tie_word_embeddings": False},
            "window": {"local_attention": 4},
            "layers": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            "full": {"layer_types": ["full_attention"] * 3, "local_attention": 128},
            "slides": {"layer_types": ["sliding_attention"] * 3},
            "thetas": {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                }
            },
            "scaled rope": {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                }
            },
        },
    ),
}
ALL = [(family, case) for family, (_, cases) in CASES.items() for case in ("base", *cases)]


def token_types(native) -> dict[str, torch.Tensor]:
    """Token types where the family has them."""
    number = getattr(native.config, "type_vocab_size", 0)
    return {"token_type_ids": parity.inputs() % number} if number else {}


@pytest.mark.parametrize(("family", "case"), ALL, ids=lambda value: value)
def test_masked_lm(family, case):
    base, cases = CASES[family]
    native = parity.native_model(family, **{**base, **cases.get(case, {})})
    ours = parity.imported(native)
    parity.assert_same_logits(native, ours)
    parity.assert_same_logits(native, ours, **token_types(native))
    parity.assert_same_configuration(native, parity.assert_round_trip(native, ours))
    if case != "base":
        base_config = parity.imported(parity.native_model(family, **base)).config
        parity.assert_switches_matter(native, ours, base_config)


@pytest.mark.parametrize("family", CASES)
def test_loss_and_saving(family, tmp_path):
    native = parity.native_model(family, **CASES[family][0])
    ours = parity.imported(native)
    parity.assert_same_loss(native, ours)
    parity.assert_same_configuration(native, parity.assert_saved_opens(native, ours, tmp_path))


HEADS = [(f, h) for f in CASES for h in (*parity.FAMILIES[f].heads, "Model") if h != "ForMaskedLM"]


@torch.no_grad()
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_heads(family, head):
    labels = {} if head == "ForQuestionAnswering" else {"num_labels": 3}
    native = parity.native_model(family, head, **labels, **CASES[family][0])
    ours = parity.imported(native)
    batch = {
        "input_ids": parity.inputs(),
        "attention_mask": torch.ones(2, 11, dtype=torch.long),
        **token_types(native),
    }
    batch["attention_mask"][1, -4:] = 0
    batch["input_ids"][1, -4:] = native.config.pad_token_id
    if head == "ForMultipleChoice":
        batch = {name: tensor[:, None].expand(-1, 2, -1).clone() for name, tensor in batch.items()}
        batch["input_ids"][:, 1, 1] += 1
    got, wanted = ours(**batch), native(**batch)
    real = batch["attention_mask"].bool()
    for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
        if name in wanted:
            where = real if wanted[name].shape[:2] == real.shape else None
            parity.assert_close(got[name], wanted[name], name, where)
    parity.assert_same_configuration(native, parity.assert_round_trip(native, ours))


@pytest.mark.parametrize(
    ("head", "switches"),
    [
        ("ForSequenceClassification", {"classifier_pooling": "mean"}),
        ("ForSequenceClassification", {"classifier_bias": True}),
        ("ForSequenceClassification", {"classifier_activation": "relu"}),
        ("ForTokenClassification", {"classifier_bias": True}),
        ("ForTokenClassification", {"classifier_activation": "relu"}),
    ],
)
def test_switches_of_modernberts_heads(head, switches):
    base = CASES["modernbert"][0] | {"num_labels": 3}
    native = parity.native_model("modernbert", head, **base, **switches)
    ours = parity.imported(native)
    where = None if head == "ForTokenClassification" else torch.ones(2)
    parity.assert_same_logits(native, ours, where=where)
    base_config = parity.imported(parity.native_model("modernbert", head, **base)).config
    parity.assert_switches_matter(native, ours, base_config)


def test_an_odd_window_is_rounded_as_transformers_rounds_it():
    native = parity.native_model("modernbert", **CASES["modernbert"][0] | {"local_attention": 5})
    ours = parity.imported(native)
    assert ours.config.sliding_window == native.config.sliding_window == 2
    parity.assert_same_logits(native, ours)


@torch.no_grad()
@pytest.mark.parametrize(
    ("native_class", "second"),
    [("BertForPreTraining", "cls.seq_relationship"), ("AlbertForPreTraining", "sop_classifier")],
)
def test_pretraining_checkpoints_keep_the_masked_lm(native_class, second):
    family = parity.FAMILIES[native_class.removesuffix("ForPreTraining").lower()]
    config = transformers.CONFIG_MAPPING[family.name](**CASES[family.name][0])
    native = getattr(transformers, native_class)(config).eval()
    parity.redraw(native)
    ours, unused = convert.import_model(family, native)
    parity.assert_close(ours(parity.inputs()).logits, native(parity.inputs()).prediction_logits, "logits")
    assert any(second in name for name in unused)
    assert all(second in name or ".pooler" in name for name in unused)


@pytest.mark.parametrize(
    ("family", "fields", "named"),
    [
        ("bert", {"is_decoder": True}, "is_decoder=True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("electra", {"summary_type": "mean"}, "summary_type='mean'"),
    ],
)
def test_what_the_core_lacks_is_refused(family, fields, named):
    config = transformers.CONFIG_MAPPING[family](**CASES[family][0], **fields)
    with pytest.raises(convert.InteropError, match=named):
        convert.to_our_config(parity.FAMILIES[family], config)
