"""What cannot work is refused, with a message that names the field, its value and what is legal."""

import re

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMDecoderForSequenceClassification,
    LLMDecoderModel,
    LLMEncoderConfig,
    LLMEncoderDecoderConfig,
    LLMEncoderForMaskedLM,
    LLMEncoderModel,
)

from .tiny import MODELS, SIZES, VOCABULARY, documents_of, tiny_config, tiny_model, tokens


SLIDING = {"layer_types": "SL", "sliding_window": 4}


def rope(**parameters) -> dict:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


def refuses(message: str):
    """A ValueError with `message` in it."""
    return pytest.raises(ValueError, match=re.escape(message))


# -- configurations ---------------------------------------------------------------------------------------------------


STACK_CONFIGURATIONS = [
    # sizes
    ({"vocab_size": 0}, "`vocab_size=0` must be at least 1."),
    ({"num_hidden_layers": 0}, "`num_hidden_layers=0` must be at least 1."),
    ({"hidden_size": 0}, "`hidden_size=0` must be at least 1."),
    ({"hidden_size": -32}, "`hidden_size=-32` must be at least 1."),
    ({"num_attention_heads": 0, "attention_type": "latent"}, "`num_attention_heads=0` must be at least 1."),
    ({"max_position_embeddings": 0}, "`max_position_embeddings=0` must be at least 1."),
    ({"hidden_size": 30}, "`num_attention_heads=4` must divide `hidden_size=30`, or `head_dim` must be set."),
    ({"num_attention_heads": 0}, "`num_attention_heads=0` must be at least 1"),
    ({"num_key_value_heads": 3}, "`num_key_value_heads=3` must divide `num_attention_heads=4`."),
    ({"num_key_value_heads": 0}, "`num_key_value_heads=0` must be at least 1."),
    ({"num_attention_heads": "4"}, "'num_attention_heads' expected int, got str (value: '4')"),
    ({"norm_eps": "1e-6"}, "'norm_eps' with value '1e-6'"),
    ({"norm_eps": -1.0}, "`norm_eps=-1.0` must be at least 0."),
    ({"residual_dropout": 1.5}, "`residual_dropout=1.5` must be in [0, 1)."),
    ({"initializer_range": -0.02}, "`initializer_range=-0.02` must be at least 0."),
    ({"attn_logit_softcapping": 0.0}, "`attn_logit_softcapping=0.0` must be greater than 0."),
    ({"final_logit_softcapping": -30.0}, "`final_logit_softcapping=-30.0` must be greater than 0."),
    ({"clip_qkv": 0.0}, "`clip_qkv=0.0` must be greater than 0."),
    ({"embedding_size": 16}, "`embedding_size=16` and `embedding_projection=None` go together"),
    ({"embedding_projection": "tokens"}, "`embedding_size=None` and `embedding_projection='tokens'` go together"),
    # choices
    ({"norm_type": "batchnorm"}, "`norm_type='batchnorm'` is not known. Legal values: 'layernorm', 'rmsnorm', "),
    ({"norm_placement": "prenorm"}, "Legal values: 'pre', 'post', 'sandwich', 'branch', 'parallel'."),
    ({"parallel_norms": 3}, "`parallel_norms=3` is not known. Legal values: 1, 2."),
    ({"qk_norm": "yes"}, "`qk_norm='yes'` is not known. Legal values: None, 'head', 'per_head', 'full'."),
    ({"position_embedding": "rotary"}, "Legal values: 'rope', 'learned', 'sinusoidal', 'alibi', "),
    ({"position_ids_source": "mask"}, "Legal values: 'arange', 'attention_mask', 'input_ids'."),
    ({"hidden_act": "swish2"}, "`hidden_act='swish2'` is not known. Legal values: 'gelu', "),
    ({"feed_forward": "swiglu"}, "`feed_forward='swiglu'` is not known. Legal values: 'gated', 'plain'."),
    ({"residual_init": "mup"}, "`residual_init='mup'` is not known. Legal values: 'depth_scaled', 'normal', 'zero'."),
    ({"embedding_size": 8, "embedding_projection": "x"}, "Legal values: None, 'tokens', 'embeddings'."),
    # layers
    ({"sliding_window": 4}, "`sliding_window=4` has no layer to slide in: set `layer_types`"),
    ({"layer_types": "SL"}, "`layer_types` has sliding layers but `sliding_window=None`"),
    ({"layer_types": "S", "sliding_window": 0}, "`sliding_window=0` must be at least 1."),
    ({**SLIDING, "layer_types": "SX"}, "`layer_types='SX'` must be a pattern of the letters S (sliding_attention), L"),
    ({**SLIDING, "layer_types": ""}, "`layer_types=''` must be a pattern"),
    ({"layer_types": ["full_attention"]}, "`layer_types` has 1 entries, but `num_hidden_layers=2`."),
    (
        {"layer_types": ["full_attention", "chunked"]},
        "`layer_types='chunked'` is not known. Legal values: 'full_attention', ",
    ),
    ({"layer_sharing": [0, 2]}, "`layer_sharing=[0, 2]` must use every number from 0 to its largest."),
    ({"layer_sharing": [0, 0], "num_experts": 2, "mlp_layer_types": "DE"}, "the same kind of feed-forward"),
    # positions
    ({"head_dim": 9}, "RoPE of `full_attention` rotates 9 of `head_dim=9` dimensions: the number must be even"),
    (rope(rope_type="default", partial_rotary_factor=0.1), "rotates 0 of `head_dim=8` dimensions"),
    (rope(rope_type="spiral"), "`rope_parameters['rope_type']='spiral'` is not known. Legal values: 'default', "),
    (rope(rope_type="linear"), "Missing required keys in `rope_parameters` for 'rope_type'='linear': {'factor'}"),
    (
        rope(rope_type="longrope", factor=2.0, short_factor=[1.0], long_factor=[1.0] * 4),
        "`rope_parameters['short_factor']` has 1 entries, but must have one for each pair of the 8 dimensions",
    ),
    (
        {**SLIDING, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "`rope_parameters` has no entry for the layer type 'sliding_attention': add one, or None for no RoPE.",
    ),
    ({**rope(rope_type="default"), "position_embedding": "alibi"}, "needs `position_embedding='rope'`, not 'alibi'."),
    ({"rope_layers": [True]}, "`rope_layers` has 1 entries, but `num_hidden_layers=2`."),
    (
        {"rope_layers": [True, False], "position_embedding": "none"},
        "`rope_layers=[True, False]` needs `position_",
    ),
    ({"position_offset": -1}, "`position_offset=-1` must be at least 0."),
    ({"position_ids_source": "input_ids", "pad_token_id": None}, "counts tokens that are not `pad_token_id`: set it."),
    ({"relative_attention_bias_per_layer": True}, "needs `position_embedding='relative_bias'`, not 'rope'."),
    (
        {"position_embedding": "relative_bias", "relative_attention_num_buckets": 1},
        "`relative_attention_num_buckets=1` has 0 buckets for single distances",
    ),
    (
        {"position_embedding": "relative_bias", "relative_attention_max_distance": 8},
        "`relative_attention_max_distance=8` must be greater.",
    ),
    # experts
    ({"num_experts": 0}, "`num_experts=0` must be at least 1."),
    ({"num_experts": 4, "num_experts_per_tok": 5}, "`num_experts_per_tok=5` must be between 1 and `num_experts=4`."),
    ({"num_experts": 4, "router_z_loss_coef": -1.0}, "`router_z_loss_coef=-1.0` must be at least 0."),
    ({"mlp_layer_types": "DE"}, "`mlp_layer_types` has sparse layers but `num_experts` is not set."),
    (
        {"num_experts": 4, "mlp_layer_types": "DX"},
        "must be a pattern of the letters D (dense), E (sparse), such as 'DE'",
    ),
    (
        {"shared_expert_intermediate_size": 8},
        "`shared_expert_intermediate_size=8` means nothing without `num_experts`.",
    ),
    ({"num_experts": 4, "shared_expert_gate": True}, "means nothing without `shared_expert_intermediate_size`."),
    ({"feed_forward": "plain", "swiglu_limit": 7.0}, "`swiglu_limit=7.0` needs `feed_forward='gated'`, not 'plain'."),
    ({"per_layer_config": {0: {"head_dim": 4}}}, "`per_layer_config={0: {'head_dim': 4}}`: layers differ by"),
    # tokens
    ({"pad_token_id": 64}, "`pad_token_id=64` is outside the vocabulary: `vocab_size=64`."),
    ({"eos_token_id": [1, 99]}, "`eos_token_id=99` is outside the vocabulary: `vocab_size=64`."),
    ({"bos_token_id": -1}, "`bos_token_id=-1` is outside the vocabulary"),
]


@pytest.mark.parametrize(("fields", "message"), STACK_CONFIGURATIONS, ids=[m for _, m in STACK_CONFIGURATIONS])
def test_impossible_stacks(fields, message):
    with refuses(message):
        LLMDecoderConfig(**(SIZES | fields))
    if "relative_attention_max_distance" not in fields:  # a bidirectional stack has half of the buckets for a side
        with refuses(message):
            LLMEncoderConfig(**(SIZES | fields))
    with refuses(message):
        LLMEncoderDecoderConfig(encoder={}, decoder=SIZES | fields)


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (LLMDecoderConfig, {"layer_types": "S", "sliding_window": 1}, "lets a token see nothing but itself"),
        (
            LLMEncoderConfig,
            {"classifier_pooling": "max"},
            "`classifier_pooling='max'` is not known. Legal values: 'cls', ",
        ),
        (LLMEncoderConfig, {"classifier_activation": "tan"}, "`classifier_activation='tan'` is not known."),
        (LLMEncoderConfig, {"head_transform_act": "tan"}, "`head_transform_act='tan'` is not known."),
    ],
)
def test_impossible_fields_of_one_stack(config_class, fields, message):
    with refuses(message):
        config_class(**(SIZES | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": {"norm_type": "x"}}, "encoder: `norm_type='x'` is not known."),
        (
            {"encoder": {"vocab_size": 10}, "decoder": {"vocab_size": 20}},
            "equal `vocab_size`: encoder 10, decoder 20.",
        ),
        ({"encoder": {"hidden_size": 64}, "decoder": {"hidden_size": 32}}, "needs equal `hidden_size`"),
        (
            {"decoder": {"cross_attention_hidden_size": 16}},
            "`decoder.cross_attention_hidden_size=16` must be the width of the encoder's output, 512.",
        ),
        ({"encoder": LLMEncoderConfig(), "decoder": LLMDecoderConfig()}, "`decoder.add_cross_attention=False`"),
        ({"hidden_size": 64}, "`hidden_size=64` contradicts the decoder's `hidden_size=512`: set it in `decoder`."),
        ({"decoder_start_token_id": 32000}, "`decoder_start_token_id=32000` is outside the vocabulary"),
        ({"pad_token_id": 32000}, "`pad_token_id=32000` is outside the vocabulary"),
        ({"per_layer_config": {0: {"head_dim": 4}}}, "`per_layer_config={0: {'head_dim': 4}}`: layers differ by"),
        ({"encoder": "bert"}, "'encoder' with value 'bert'"),
        ({"classifier_dropout": 1.0}, "`classifier_dropout=1.0` must be in [0, 1)."),
        (
            {"encoder": {"hiden_size": 8}},
            "encoder: `hiden_size` is not a field of LLMEncoderConfig; did you",
        ),
        ({"num_hidden_layer": 8}, "did you mean `num_hidden_layers`?"),
    ],
)
def test_impossible_encoder_decoders(fields, message):
    with refuses(message):
        LLMEncoderDecoderConfig(**fields)


def test_a_keyword_that_is_nearly_a_field_is_refused():
    with refuses("`sliding_windw` is not a field of LLMDecoderConfig; did you mean `sliding_window`?"):
        LLMDecoderConfig(sliding_windw=4)


@pytest.mark.parametrize("stack", MODELS)
def test_a_saved_configuration_opens_with_any_keys(stack, tmp_path):
    saved = tiny_config(stack).to_dict()
    legacy = {"_attn_implementation_autoset": True, "torch_dtype": "float32", "rope_scaling": None}
    unknown = {"hidden_sizes": [8], "of_a_later_version": 1, **legacy}
    for half in ("encoder", "decoder"):
        if half in saved:
            saved[half]["hidden_sizes"] = [8]
    config = type(tiny_config(stack)).from_dict({**saved, **unknown})
    assert config.of_a_later_version == 1
    config.save_pretrained(tmp_path)
    reopened = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert reopened == {**config.to_dict(), "_name_or_path": str(tmp_path)}


@pytest.mark.parametrize("stack", MODELS)
def test_a_head_cannot_be_tied_to_embeddings_of_another_width(stack):
    config = tiny_config(stack, embedding_size=16, embedding_projection="embeddings")
    with refuses("`tie_word_embeddings=True` ties a head on 32 dimensions to embeddings of `embedding_size=16`"):
        MODELS[stack](config)


@pytest.mark.parametrize("stack", MODELS)
def test_unknown_implementations(stack):
    with refuses('Specified `attn_implementation="magic"` is not supported'):
        tiny_model(stack, "magic")
    with refuses(
        "`attn_implementation='sdpa'` cannot honour `attn_logit_softcapping=5.0`. Backends that can: eager, "
    ):
        tiny_model(stack, "sdpa", attn_logit_softcapping=5.0)
    with refuses('Specified `experts_implementation="magic"` is not supported'):
        tiny_model(stack, num_experts=4).set_experts_implementation("magic")


# -- inputs -----------------------------------------------------------------------------------------------------------


IDS = tokens(2, 9)
SOURCE = {"decoder_input_ids": IDS}
EMBEDS = torch.zeros(2, 9, 32)
PACKED = documents_of([[4, 5], [4, 5]], 9)
LEARNED = {"position_embedding": "learned"}
ENCODER_INPUTS = [
    ({}, {}, "Pass exactly one of `input_ids` and `inputs_embeds`."),
    ({}, {"input_ids": IDS, "inputs_embeds": EMBEDS}, "Pass exactly one of `input_ids` and `inputs_embeds`."),
    ({}, {"input_ids": IDS[0]}, "`input_ids` has shape (9,), but must be (batch, sequence)."),
    (
        {},
        {"inputs_embeds": EMBEDS[..., :31]},
        "`inputs_embeds` has shape (2, 9, 31), but must be (batch, sequence, 32)",
    ),
    ({}, {"input_ids": IDS.new_full((1, 3), 64)}, "`input_ids` has 64, but must be from 0 to 63 (`vocab_size=64`)."),
    ({}, {"input_ids": -IDS}, "but must be from 0 to 63 (`vocab_size=64`)."),
    (LEARNED, {"input_ids": tokens(1, 65)}, "learned positions end at `max_position_embeddings=64`"),
    (
        LEARNED,
        {"input_ids": IDS, "position_ids": torch.arange(60, 69)[None]},
        "`position_ids` has 64, but must be from 0 to 63 (`max_position_embeddings=64`).",
    ),
    (
        {},
        {"input_ids": IDS, "position_ids": torch.arange(5)[None]},
        "`position_ids` has shape (1, 5), but must have one",
    ),
    ({}, {"input_ids": IDS, "attention_mask": torch.ones(2, 5)}, "`attention_mask` has shape (2, 5)"),
    ({}, {"input_ids": IDS, "attention_mask": torch.ones(3, 9)}, "`attention_mask` has shape (3, 9)"),
    (
        {},
        {"input_ids": IDS, "document_ids": PACKED[:, :5]},
        "`document_ids` has shape (2, 5), but must have one id for",
    ),
    ({}, {"input_ids": IDS, "document_ids": PACKED[:1]}, "`document_ids` has shape (1, 9), but must have one id for"),
    ({}, {"input_ids": IDS, "document_ids": PACKED.float()}, "`document_ids` has the dtype torch.float32"),
    (
        {},
        {"input_ids": IDS, "document_ids": PACKED.flip(-1)},
        "`document_ids` of row 0 fall to 0, but must number the",
    ),
]


@pytest.mark.parametrize(("fields", "inputs", "message"), ENCODER_INPUTS, ids=[m for *_, m in ENCODER_INPUTS])
def test_inputs_that_do_not_fit(fields, inputs, message):
    with refuses(message):
        tiny_model("encoder", **fields)(**inputs)
    with refuses(message):
        tiny_model("decoder", **fields)(**inputs)
    with refuses(message):
        tiny_model("encoder_decoder", **fields)(**inputs, **SOURCE)
    target = {f"decoder_{name}": value for name, value in inputs.items()}
    with pytest.raises(ValueError):
        tiny_model("encoder_decoder", **fields)(input_ids=IDS, **target)


@pytest.mark.parametrize(
    ("stack", "fields", "inputs", "message"),
    [
        (
            "encoder",
            {},
            {"token_type_ids": torch.ones_like(IDS)},
            "`type_vocab_size=0`: the model has no token types.",
        ),
        ("decoder", {}, {"token_type_ids": torch.ones_like(IDS)}, "the model has no token types."),
        ("encoder_decoder", {}, {**SOURCE, "token_type_ids": torch.ones_like(IDS)}, "the model has no token types."),
        (
            "encoder_decoder",
            {},
            {**SOURCE, "decoder_token_type_ids": torch.ones_like(IDS)},
            "the model has no token types.",
        ),
        (
            "decoder",
            {"type_vocab_size": 2},
            {"token_type_ids": torch.zeros_like(IDS)[:, 1:]},
            "`token_type_ids` has shape (2, 8), but must have one for each token: (2, 9).",
        ),
        (
            "encoder",
            {"type_vocab_size": 2},
            {"token_type_ids": torch.full_like(IDS, 2)},
            "`token_type_ids` has 2, but must be from 0 to 1 (`type_vocab_size=2`).",
        ),
        ("decoder", {}, {"encoder_hidden_states": EMBEDS}, "`add_cross_attention=False`: nothing reads them."),
        ("encoder_decoder", {}, {}, "Pass `decoder_input_ids`, `decoder_inputs_embeds` or `labels`."),
        ("encoder_decoder", {}, {**SOURCE, "decoder_document_ids": PACKED}, "pass `encoder_document_ids` as well."),
        ("encoder_decoder", {}, {**SOURCE, "document_ids": PACKED}, "pass the decoder's `document_ids` as well."),
        (
            "encoder_decoder",
            {},
            {"labels": IDS, "document_ids": PACKED, "decoder_document_ids": PACKED},
            "With packed documents, pass `decoder_input_ids`: each document is shifted apart.",
        ),
        (
            "encoder_decoder",
            {},
            {**SOURCE, "encoder_outputs": (EMBEDS[..., :31],)},
            "`encoder_hidden_states` has shape (2, 9, 31), but must be (2, source, 32).",
        ),
        (
            "encoder_decoder",
            {},
            {**SOURCE, "encoder_outputs": (EMBEDS,), "attention_mask": torch.ones(2, 5)},
            "The encoder's attention mask has shape (2, 5), but must have one entry for each source token: (2, 9).",
        ),
    ],
)
def test_inputs_that_do_not_fit_one_stack(stack, fields, inputs, message):
    with refuses(message):
        tiny_model(stack, **fields)(input_ids=IDS, **inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stack", MODELS)
def test_labels_that_do_not_fit(stack, training):
    model = tiny_model(stack).train(training)
    inputs = {"input_ids": IDS, **(SOURCE if stack == "encoder_decoder" else {})}
    with refuses("`labels` has 64, but must be from 0 to 63, or -100 for no target."):
        model(**inputs, labels=torch.full_like(IDS, VOCABULARY))
    with refuses("`labels` has shape (2, 5), but must have one for each token: (2, 9)."):
        model(**inputs, labels=IDS[:, :5])


def test_a_cache_does_not_grow_beyond_learned_positions():
    model = tiny_model("decoder", **LEARNED)
    with refuses("`position_ids` has 64, but must be from 0 to 63 (`max_position_embeddings=64`)."):
        model.generate(tokens(1, 60), max_new_tokens=10)


def test_a_cache_and_its_mask():
    model = tiny_model("decoder")
    cache = model(IDS, use_cache=True).past_key_values
    with refuses("those in the cache included: (2, 12)."):
        model(IDS[:, :3], attention_mask=torch.ones(2, 3), past_key_values=cache)


def test_labels_need_a_start_token():
    model = MODELS["encoder_decoder"](LLMEncoderDecoderConfig(encoder=SIZES, decoder=SIZES))
    with refuses("Set `decoder_start_token_id` in the configuration"):
        model(IDS, labels=IDS)


def test_classifiers():
    config = {**SIZES, "pad_token_id": None, "num_labels": 3}
    model = LLMDecoderForSequenceClassification(LLMDecoderConfig(**config))
    with refuses("pass an `attention_mask` or set `pad_token_id` in the config."):
        model(IDS)
    mask = torch.ones_like(IDS)
    with refuses("`labels` has 3, but must be from 0 to 2"):
        model(IDS, attention_mask=mask, labels=torch.tensor([1, 3]))
    object.__setattr__(model.config, "problem_type", "ranking")  # some versions check it when it is set
    with refuses("`problem_type='ranking'` is not known. Legal values: 'regression', "):
        model(IDS, attention_mask=mask, labels=torch.tensor([1, 2]))


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_stack(tmp_path):
    tiny_model("decoder").save_pretrained(tmp_path)
    for model_class in (LLMEncoderModel, LLMEncoderForMaskedLM):
        with refuses(
            "`model_type='hf_llm_decoder'`: this checkpoint is of another architecture, LLMEncoderConfig opens"
        ):
            model_class.from_pretrained(tmp_path)
    with refuses("Unrecognized configuration class"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_a_native_checkpoint(tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with refuses("`model_type='llama'`: this checkpoint is of another architecture"):
        LLMDecoderForCausalLM.from_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM


def test_weights_of_another_size(tmp_path):
    tiny_model("decoder").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        LLMDecoderForCausalLM.from_pretrained(tmp_path, vocab_size=80)


def test_weights_that_are_missing_or_left_over_are_reported(tmp_path):
    model = tiny_model("decoder", qk_norm=None)
    model.save_pretrained(tmp_path)
    _, report = LLMDecoderModel.from_pretrained(
        tmp_path, qk_norm="head", feed_forward="plain", output_loading_info=True
    )
    assert {name.split(".")[-2] for name in report["missing_keys"]} == {"q_norm", "k_norm"}
    assert {name.split(".")[-2] for name in report["unexpected_keys"]} == {"gate_proj"}
