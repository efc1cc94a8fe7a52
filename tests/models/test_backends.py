"""Attention backends: they agree, the right one is chosen, what reaches flash attention is what it needs."""

import pytest
import torch
from transformers import AttentionInterface, GenerationConfig
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_llm import LLMDecoderModel, LLMEncoderDecoderForConditionalGeneration, LLMEncoderModel
from hf_llm.models.attention import BACKEND_FEATURES, check_backend, eager_attention_forward

from .generating import PAGED_CACHE
from .tiny import (
    EXPERTS,
    STACKS,
    inputs_of,
    logits_of,
    packed_batch,
    redraw,
    target_documents,
    tiny_config,
    tiny_model,
    tokens,
)


pytestmark = [
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

CONFIGURATIONS = {
    "default": {},
    "window": {"layer_types": "SL", "sliding_window": 3},
    "multi_head_with_biases": {
        "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True, "qk_norm": None, "norm_placement": "post",
        "norm_type": "layernorm", "norm_bias": True, "position_embedding": "learned", "feed_forward": "plain",
        "hidden_act": "gelu",
    },
    "multi_query": {"num_key_value_heads": 1, "qk_norm": "full", "norm_placement": "branch"},
    "three_heads_of_ten": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10, "qk_norm": "per_head"},
    "sinusoidal": {"position_embedding": "sinusoidal", "norm_placement": "parallel", "clip_qkv": 0.5},
    "alibi": {"position_embedding": "alibi"},
    "alibi_window": {"position_embedding": "alibi", "layer_types": "SL", "sliding_window": 3},
    "relative_bias": {"position_embedding": "relative_bias", "attention_scale": 1.0},
    "relative_bias_per_layer": {"position_embedding": "relative_bias", "relative_attention_bias_per_layer": True},
    "no_positions": {"position_embedding": "none", "attention_scale": 0.3},
    "rope_per_layer_type": {
        "layer_types": "SL", "sliding_window": 4, "rope_interleaved": True,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
        },
    },
    "no_rope_in_one_layer": {"rope_layers": [True, False], "scale_attention_by_inverse_layer_idx": True},
    "softcap": {"attn_logit_softcapping": 2.0, "norm_placement": "sandwich"},
    "softcap_window_alibi": {
        "attn_logit_softcapping": 2.0, "position_embedding": "alibi", "layer_types": "SL", "sliding_window": 3,
    },
    "sinks": {"attention_sinks": True},
    "sinks_window": {"attention_sinks": True, "layer_types": "SL", "sliding_window": 3},
    "sinks_softcap_relative_bias": {
        "attention_sinks": True, "attn_logit_softcapping": 2.0, "position_embedding": "relative_bias",
    },
    "experts": EXPERTS,
    "shared_layers": {"layer_sharing": [0, 0]},
}  # fmt: skip
BACKENDS = ("sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


def padded_inputs(stack: str, side: str) -> tuple[dict[str, torch.Tensor], torch.BoolTensor]:
    """A batch whose second row has three (source) and two (target) tokens of padding, and which tokens are real."""
    inputs = inputs_of(stack)
    real = None
    for half, padding in (("", 3), ("decoder_", 2)):
        if f"{half}input_ids" in inputs:
            real = torch.ones_like(inputs[f"{half}input_ids"])
            real[1, slice(None, padding) if side == "left" else slice(-padding, None)] = 0
            inputs[f"{half}attention_mask"] = real
    return inputs, real.bool()


def able(fields: dict, stack: str = "decoder") -> list[str]:
    """The backends that can honour a configuration."""
    backends = []
    config = tiny_config(stack, **fields)
    for backend in BACKENDS:
        try:
            for half in (config.encoder, config.decoder) if stack == "encoder_decoder" else (config,):
                check_backend(half, backend)
            backends.append(backend)
        except ValueError:
            pass
    return backends


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_backends_agree_with_eager(name, stack, flash_kernels, uncompiled):
    """Whole, left-padded and right-padded batches on every backend that can honour the configuration."""
    fields = CONFIGURATIONS[name]
    eager = tiny_model(stack, "eager", **fields)
    batches = [(inputs_of(stack), torch.tensor(True)), padded_inputs(stack, "left"), padded_inputs(stack, "right")]
    expected = [logits_of(eager, inputs) for inputs, _ in batches]
    assert expected[0].std() > 0.1
    for backend in able(fields, stack):
        if backend == "flex_attention" and "sinks" in name:
            continue  # transformers has no sinks in flex attention on a CPU
        if backend == "flash_attention_3" and "sinks" not in name:
            continue  # takes the same way as flash_attention_2
        model = tiny_model(stack, backend, **fields)
        for (inputs, real), reference in zip(batches, expected):
            logits = logits_of(model, inputs)
            real = real.expand(logits.shape[:2])
            difference = (logits[real] - reference[real]).abs().max().item()
            assert difference < 1e-5, f"{backend}: {difference}"


@pytest.mark.parametrize("fields", [{}, {"layer_types": "SL", "sliding_window": 3}], ids=("default", "window"))
@pytest.mark.parametrize("backend", ("eager", *BACKENDS))
def test_is_causal_false_makes_a_decoder_bidirectional(backend, fields, flash_kernels, uncompiled):
    """transformers' own switch, in the configuration or in the call, gives what an encoder gives."""
    encoder = LLMEncoderModel(tiny_config("encoder", "eager", **fields))
    expected = redraw(encoder).eval()(**inputs_of("encoder")).last_hidden_state
    model = redraw(LLMDecoderModel(tiny_config("decoder", backend, **fields))).eval()
    with torch.no_grad():
        asked = model(**inputs_of("decoder"), is_causal=False).last_hidden_state
        torch.testing.assert_close(asked, expected, rtol=0, atol=1e-5)
        model.config.is_causal = False
        configured = model(**inputs_of("decoder")).last_hidden_state
    torch.testing.assert_close(configured, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", STACKS)
def test_padding_changes_the_outputs_of_no_other_row(stack):
    """The padded batches above do test something: without the mask the padded row differs, the other does not."""
    model = tiny_model(stack)
    inputs, real = padded_inputs(stack, "left")
    unmasked = {name: value for name, value in inputs.items() if "mask" not in name}
    masked, unmasked = logits_of(model, inputs), logits_of(model, unmasked)
    torch.testing.assert_close(masked[0], unmasked[0], rtol=0, atol=1e-6)
    assert (masked[1][real[1]] - unmasked[1][real[1]]).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("stack", ("decoder", "encoder"))
def test_compiled_flex_attention_agrees_with_eager(stack):
    """The compiled kernel, on packed documents with a softcap and a window."""
    fields = {"attn_logit_softcapping": 2.0, "layer_types": "SL", "sliding_window": 3}
    batch = packed_batch(stack)
    real = target_documents(batch) >= 0
    expected = logits_of(tiny_model(stack, "eager", **fields), batch)
    logits = logits_of(tiny_model(stack, "flex_attention", **fields), batch)
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5)


# -- choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    ("fields", "best"),
    [
        ({}, "sdpa"),
        ({"position_embedding": "alibi"}, "sdpa"),
        ({"position_embedding": "relative_bias"}, "sdpa"),
        ({"attention_dropout": 0.1}, "sdpa"),
        ({"attn_logit_softcapping": 2.0}, "eager"),
        ({"attention_sinks": True}, "eager"),
    ],
)
def test_unasked_the_best_backend_is_chosen(stack, fields, best):
    model = tiny_model(stack, **fields)
    stacks = [module for module in model.modules() if isinstance(module, LLMDecoderModel | LLMEncoderModel)]
    assert {module.config._attn_implementation for module in stacks} == {best}


def test_halves_choose_for_themselves():
    """A softcap in the decoder alone leaves sdpa to the encoder."""
    config = tiny_config("encoder_decoder")
    config.decoder.attn_logit_softcapping = 2.0
    model = LLMEncoderDecoderForConditionalGeneration(config)
    assert model.model.encoder.config._attn_implementation == "sdpa"
    assert model.model.decoder.config._attn_implementation == "eager"


REFUSED = [
    ("sdpa", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping=2.0"),
    ("sdpa", {"attention_sinks": True}, "attention_sinks=True"),
    ("flash_attention_2", {"position_embedding": "alibi"}, "position_embedding='alibi'"),
    ("flash_attention_2", {"position_embedding": "relative_bias"}, "position_embedding='relative_bias'"),
    ("flash_attention_2", {"attention_sinks": True}, "attention_sinks=True"),
    ("paged|eager", {"attn_logit_softcapping": 2.0}, "attn_logit_softcapping=2.0"),
    ("paged|eager", {"position_embedding": "alibi"}, "position_embedding='alibi'"),
]


@pytest.mark.parametrize(("backend", "fields", "named"), REFUSED)
@pytest.mark.parametrize("stack", STACKS)
def test_an_explicit_choice_that_cannot_be_honoured_is_refused(stack, backend, fields, named, flash_kernels, tmp_path):
    """In the configuration, on loading, and on a living model, which keeps the backend it has."""
    with pytest.raises(ValueError, match="cannot honour") as refusal:
        tiny_model(stack, backend, **fields)
    assert named in str(refusal.value) and repr(backend) in str(refusal.value)

    model = tiny_model(stack, **fields)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="cannot honour"):
        model.set_attn_implementation(backend)
    assert model.config._attn_implementation == before

    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot honour"):
        type(model).from_pretrained(tmp_path, attn_implementation=backend)


@pytest.mark.parametrize("backend", ("flex_attention", "flash_attention_3"))
@pytest.mark.parametrize("stack", STACKS)
def test_dropout_of_attention_is_refused_in_training_alone(stack, backend, flash_kernels, uncompiled):
    """Many pretrained models have it in their configuration; without training it says nothing."""
    inputs = inputs_of(stack)
    model = tiny_model(stack, backend, attention_dropout=0.1).eval()
    expected = logits_of(tiny_model(stack, "eager", attention_dropout=0.1).eval(), inputs)
    torch.testing.assert_close(logits_of(model, inputs), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cannot honour `attention_dropout=0.1`. Backends that can: eager, sdpa"):
        model.train()(**inputs)


def test_flash_kernels_from_the_hub_are_held_to_the_same_rules(flash_kernels):
    """Under the name of a kernel repository, transformers does not ask the model whether the backend fits."""
    model = tiny_model("decoder", position_embedding="alibi")
    for kernel in ("kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3"):
        with pytest.raises(ValueError, match="cannot honour"):
            model.set_attn_implementation(kernel)
        assert model.config._attn_implementation == "sdpa"


def test_set_attn_implementation_reaches_every_stack():
    for stack in STACKS:
        model = tiny_model(stack)
        inputs = inputs_of(stack)
        expected = logits_of(model, inputs)
        model.set_attn_implementation("eager")
        backends = {m.config._attn_implementation for m in model.modules() if hasattr(m, "set_attn_implementation")}
        assert backends == {"eager"}
        torch.testing.assert_close(logits_of(model, inputs), expected, rtol=0, atol=1e-5)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="fast_attention"):
        tiny_model("decoder", "fast_attention")


def test_a_backend_of_the_users_own_is_used():
    """What is registered with transformers is trusted to honour everything."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["softcap"])
        return eager_attention_forward(*args, **kwargs)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", eager_mask)
    fields = {"attn_logit_softcapping": 2.0}
    inputs = inputs_of("decoder")
    logits = logits_of(tiny_model("decoder", "counted", **fields), inputs)
    torch.testing.assert_close(logits, logits_of(tiny_model("decoder", **fields), inputs))
    assert calls == [2.0, 2.0]


def test_every_backend_of_the_table_exists():
    assert set(BACKEND_FEATURES) <= {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("feed_forward", ("gated", "plain"))
@pytest.mark.parametrize("bias", (True, False))
def test_implementations_of_experts_agree(stack, feed_forward, bias):
    """One expert after the other, batched and grouped: logits and gradients."""
    fields = {"feed_forward": feed_forward, "expert_bias": bias, "router_bias": bias, "mlp_layer_types": "DE"}
    if feed_forward == "gated":
        fields |= {"swiglu_limit": 1.0, "swiglu_alpha": 1.7} if bias else {}
    results = []
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = tiny_model(stack, **EXPERTS | fields)
        model.set_experts_implementation(implementation)
        output = model(**packed_batch(stack))
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((output.logits[target_documents(packed_batch(stack)) >= 0], gradients))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)


# -- what reaches flash attention -------------------------------------------------------------------------------------


NO_CACHE = {"decoder": {"use_cache": False}, "encoder": {}, "encoder_decoder": {"use_cache": False}}


def lengths(calls) -> list[tuple[list[int], list[int]]]:
    return [(call["q_lengths"], call["k_lengths"]) for call in calls]


@pytest.mark.parametrize("stack", ("decoder", "encoder"))
def test_flash_gets_padded_rows_without_their_padding(stack, flash_kernels):
    inputs, _ = padded_inputs(stack, "left")
    logits_of(tiny_model(stack, "flash_attention_2"), inputs, **NO_CACHE[stack])
    assert lengths(flash_kernels.calls) == [([9, 6], [9, 6])] * 2
    assert {call["causal"] for call in flash_kernels.calls} == {stack == "decoder"}


@pytest.mark.parametrize("stack", ("decoder", "encoder"))
def test_flash_gets_whole_rows_as_they_are(stack, flash_kernels):
    """No padding and no packing: the dense kernel, also with a mask of ones."""
    model = tiny_model(stack, "flash_attention_2")
    inputs = inputs_of(stack)
    for mask in ({}, {"attention_mask": torch.ones_like(inputs["input_ids"])}):
        flash_kernels.calls.clear()
        logits_of(model, inputs | mask)
        assert [call["kernel"] for call in flash_kernels.calls] == ["dense"] * 2


@pytest.mark.parametrize("stack", ("decoder", "encoder"))
@pytest.mark.parametrize("given", ("document_ids", "position_ids"))
def test_flash_gets_each_document_apart(stack, given, flash_kernels):
    """Several rows, packed: a segment for each document and, with document ids, none for padding."""
    batch = packed_batch(stack, padding=2 if given == "document_ids" else 0, lengths=((4, 3, 5), (6, 6)))
    inputs = {"input_ids": batch["input_ids"], given: batch[given]}
    logits_of(tiny_model(stack, "flash_attention_2"), inputs, **NO_CACHE[stack])
    assert lengths(flash_kernels.calls) == [([4, 3, 5, 6, 6], [4, 3, 5, 6, 6])] * 2


def test_flash_gets_padding_as_segments_where_a_cache_is_filled(flash_kernels):
    """The cache keeps rows in shape, so padding stays, apart from the documents."""
    logits_of(tiny_model("decoder", "flash_attention_2"), packed_batch("decoder"), use_cache=True)
    assert lengths(flash_kernels.calls) == [([4, 3, 5, 2, 6, 5, 3], [4, 3, 5, 2, 6, 5, 3])] * 2


def test_flash_gets_source_and_target_apart(flash_kernels):
    """Encoder, then for each decoder layer self-attention and cross-attention, queries and keys of each document."""
    batch = packed_batch("encoder_decoder")
    logits_of(tiny_model("encoder_decoder", "flash_attention_2"), batch, use_cache=False)
    source, target = [4, 3, 5, 6, 5], [3, 5, 2, 2, 6]
    assert lengths(flash_kernels.calls) == [(source, source)] * 2 + [(target, target), (target, source)] * 2
    assert [call["causal"] for call in flash_kernels.calls] == [False, False, True, False, True, False]


def test_flash_gets_a_padded_source_and_target(flash_kernels):
    inputs, _ = padded_inputs("encoder_decoder", "right")
    logits_of(tiny_model("encoder_decoder", "flash_attention_2"), inputs, use_cache=False)
    source, target = [9, 6], [7, 5]
    assert lengths(flash_kernels.calls) == [(source, source)] * 2 + [(target, target), (target, source)] * 2


@pytest.mark.parametrize(("stack", "window"), [("decoder", (2, 2)), ("encoder", (3, 3))])
def test_flash_gets_the_window(stack, window, flash_kernels):
    """Causal: the token and the `sliding_window - 1` before it. Bidirectional: `sliding_window` on either side."""
    model = tiny_model(stack, "flash_attention_2", layer_types="SL", sliding_window=3)
    logits_of(model, packed_batch(stack))
    assert [call["window_size"] for call in flash_kernels.calls] == [window, (-1, -1)]


def test_flash_keeps_the_lengths_that_a_collator_gives(flash_kernels):
    """transformers' DataCollatorWithFlattening passes lengths of its own; they reach the kernel."""
    model = tiny_model("decoder", "flash_attention_2")
    cumulative = torch.tensor([0, 4, 9], dtype=torch.int32)
    given = {"cu_seq_lens_q": cumulative, "cu_seq_lens_k": cumulative, "max_length_q": 5, "max_length_k": 5}
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    logits = logits_of(model, {"input_ids": tokens(1, 9), "position_ids": positions} | given)
    assert lengths(flash_kernels.calls) == [([4, 5], [4, 5])] * 2
    sdpa = tiny_model("decoder", "sdpa")
    expected = logits_of(sdpa, {"input_ids": tokens(1, 9), "position_ids": positions})
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("fields", [{}, {"layer_types": "SL", "sliding_window": 3}, EXPERTS])
def test_flash_trains_like_sdpa(stack, fields, flash_kernels):
    """Loss and gradients of a packed batch with padding; the router losses of experts count real tokens alone."""
    batch = packed_batch(stack)
    results = []
    for backend in ("sdpa", "flash_attention_2"):
        model = tiny_model(stack, backend, **fields).train()
        loss = model(**batch).loss
        loss.backward()
        results.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", ("in the call", "in the configuration"))
@pytest.mark.parametrize("stack", ("decoder", "encoder"))
def test_hidden_states_of_flash_have_the_shape_of_the_batch(stack, asked, flash_kernels):
    batch = packed_batch(stack)
    real = batch["document_ids"] >= 0
    hidden = []
    for backend in ("sdpa", "flash_attention_2"):
        model = tiny_model(stack, backend)
        model.config.output_hidden_states = asked == "in the configuration"
        options = NO_CACHE[stack] | ({"output_hidden_states": True} if asked == "in the call" else {})
        with torch.no_grad():
            hidden.append(torch.stack(model(**batch, **options).hidden_states)[:, real])
    torch.testing.assert_close(hidden[1], hidden[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", ("decoder", "encoder_decoder"))
@pytest.mark.parametrize("fields", [{}, {"layer_types": "SL", "sliding_window": 3}], ids=("default", "window"))
def test_flash_decodes_behind_a_cache(stack, fields, flash_kernels):
    """Left-padded prompts, token by token: the tokens and scores of sdpa."""
    prompts, _ = padded_inputs(stack, "left")
    prompts = {name: value for name, value in prompts.items() if not name.startswith("decoder_")}
    settings = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    sdpa, flash = (
        tiny_model(stack, backend, **fields).generate(**prompts, **settings)
        for backend in ("sdpa", "flash_attention_2")
    )
    assert flash.sequences.equal(sdpa.sequences)
    torch.testing.assert_close(flash.logits, sdpa.logits, rtol=0, atol=1e-4)


# -- paged attention --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"attention_sinks": True}], ids=("default", "sinks"))
def test_continuous_batching_gives_the_tokens_of_generate(fields):
    """Paged eager attention."""
    model = tiny_model("decoder", "eager", **fields)
    prompts = [tokens(length, seed=length).tolist() for length in (5, 9)]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    expected = [
        model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    results = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=PAGED_CACHE)
    assert [result.generated_tokens for result in results.values()] == expected
