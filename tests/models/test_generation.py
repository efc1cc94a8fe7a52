"""Generation by every route of transformers, for decoder and encoder-decoder. Routes that promise the same tokens give
the same tokens, and the same logits."""

import importlib.util

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    CompileConfig,
    DynamicCache,
    EncoderDecoderCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hf_llm.models.compat import CACHE

from .generating import (
    ABSOLUTE,
    NEW,
    PROMPT,
    SLIDING,
    VARIANTS,
    assert_same,
    generate,
    pad,
    prompts,
    since,
    tiny_model,
)
from .tiny import EXPERTS, VOCABULARY, tokens


STACKS = ("decoder", "encoder_decoder")
FLASH = ("rope", "learned", "some layers slide", "softcap", "experts")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
}

variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
stacks = pytest.mark.parametrize("stack", STACKS)


# -- caches -----------------------------------------------------------------------------------------------------------


@variants
@stacks
def test_every_cache_gives_the_same_tokens(stack, fields):
    model = tiny_model(stack, **fields)
    expected = generate(model, prompts())
    assert_same(generate(model, prompts(), use_cache=False), expected)
    assert_same(generate(model, prompts(), cache_implementation="static", disable_compile=True), expected)
    beams, _ = generate(model, prompts(), num_beams=3)
    assert beams.tolist() == generate(model, prompts(), num_beams=3, use_cache=False)[0].tolist()


@variants
@stacks
def test_greedy_tokens_are_those_of_one_forward_pass(stack, fields):
    model = tiny_model(stack, **fields)
    new, _ = generate(model, prompts())
    with torch.no_grad():
        if stack == "decoder":
            logits = model(torch.cat((prompts()["input_ids"], new), dim=1)).logits[:, PROMPT - 1 : -1]
        else:
            start = torch.full((2, 1), model.config.decoder_start_token_id)
            logits = model(**prompts(), decoder_input_ids=torch.cat((start, new), dim=1)).logits[:, :-1]
    assert logits.argmax(-1).tolist() == new.tolist()


@variants
def test_a_prompt_in_chunks_gives_the_same_tokens(fields):
    model = tiny_model("decoder", **fields)
    assert_same(generate(model, prompts(), prefill_chunk_size=4), generate(model, prompts()))


@pytest.mark.parametrize("kwargs", [{}, {"cache_implementation": "static", "disable_compile": True}])
@stacks
def test_a_text_outgrows_the_short_frequencies_of_longrope(stack, kwargs):
    """All keys are rotated anew, once."""
    model = tiny_model(stack, seed=1, rope_parameters=LONGROPE)
    whole = generate(model, prompts(), use_cache=False, max_new_tokens=16)
    assert whole[0].unique().numel() > 5
    assert_same(generate(model, prompts(), max_new_tokens=16, **kwargs), whole)


def test_longrope_counts_real_tokens_and_those_given_as_embeddings():
    """Not the length of `input_ids`, which has padding and lacks what is passed as `inputs_embeds`."""
    model = tiny_model("decoder", seed=1, rope_parameters=LONGROPE)
    whole = generate(model, prompts(), use_cache=False, max_new_tokens=16)
    assert_same(generate(model, pad(prompts(), "left", 5), max_new_tokens=16), whole)
    embeds = model.get_input_embeddings()(prompts()["input_ids"])
    inputs = {"inputs_embeds": embeds, "attention_mask": prompts()["attention_mask"]}
    assert_same(generate(model, inputs, max_new_tokens=16), whole)
    assert_same(generate(model, {**inputs, **prompts()}, max_new_tokens=16), whole)


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}])
@stacks
def test_new_tokens_have_the_type_of_the_last(stack, kwargs):
    """As in GPT-2: what is generated is what a forward pass gives with these types."""
    model, half = tiny_model(stack, seed=1, type_vocab_size=3), "" if stack == "decoder" else "decoder_"
    ids = prompts()["input_ids"].index_fill(1, torch.tensor([0]), 1)  # the start token of an encoder-decoder
    inputs = {f"{half}input_ids": ids, f"{half}token_type_ids": ids % 2 + 1, f"{half}attention_mask": ids.ge(0).long()}
    if stack == "encoder_decoder":
        inputs |= {**prompts(), "token_type_ids": (ids + 1) % 3}
    settings = {"max_new_tokens": NEW, "do_sample": False, "num_beams": kwargs.get("num_beams", 1)}
    found = model.generate(**inputs, **{**settings, **kwargs})
    assert found.equal(model.generate(**inputs, **settings, use_cache=False))
    for name in (name for name in inputs if name.endswith("token_type_ids")):
        other = model(**{**inputs, name: torch.zeros_like(ids)}).logits
        assert not torch.allclose(other, model(**inputs).logits)
    if not kwargs:
        types = inputs[f"{half}token_type_ids"]
        types = torch.cat((types, types[:, -1:].expand(-1, NEW)), dim=1)
        grown = {
            f"{half}input_ids": found,
            f"{half}token_type_ids": types,
            f"{half}attention_mask": types.ge(0).long(),
        }
        logits = model(**{**inputs, **grown}).logits
        assert logits[:, PROMPT - 1 : -1].argmax(-1).equal(found[:, PROMPT:])


@pytest.mark.parametrize("name", FLASH)
@stacks
def test_flash_attention_gives_the_same_tokens(stack, name, flash_kernels):
    model, flash = (tiny_model(stack, backend, **VARIANTS[name]) for backend in (None, "flash_attention_2"))
    long, short = prompts(1), prompts(1, PROMPT - 3)
    padded = pad(short, "left" if stack == "decoder" else "right")
    for inputs in (prompts(), {name: torch.cat((long[name], padded[name])) for name in long}):
        assert_same(generate(flash, inputs), generate(model, inputs))
        assert_same(generate(flash, inputs, use_cache=False), generate(model, inputs))
    assert flash_kernels.calls


@stacks
def test_a_sliding_cache_holds_a_window_and_a_cross_attention_cache_the_whole_source(stack):
    model = tiny_model(stack, layer_types="S", sliding_window=4)
    for cache_implementation, held in (("dynamic", 3), ("static", 4)):
        cache = model.generate(
            **prompts(),
            max_new_tokens=NEW,
            do_sample=False,
            cache_implementation=cache_implementation,
            disable_compile=True,
            return_dict_in_generate=True,
        ).past_key_values
        self_attention = getattr(cache, "self_attention_cache", cache)
        assert {layer.keys.shape[2] for layer in self_attention.layers} == {held}
        if stack == "encoder_decoder":
            assert {layer.keys.shape[2] for layer in cache.cross_attention_cache.layers} == {PROMPT}


def test_a_cross_attention_cache_does_not_slide():
    """One that was made to slide holds the whole source, unless it has slid already."""
    model = tiny_model("encoder_decoder", **SLIDING)
    config = model.config.decoder
    expected = generate(model, prompts())[0].tolist()
    for cross in (DynamicCache(config=config), DynamicCache()):
        cache = EncoderDecoderCache(DynamicCache(config=config), cross)
        assert generate(model, prompts(), past_key_values=cache)[0].tolist() == expected
    slid = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    slid.is_updated[0] = True
    with pytest.raises(ValueError, match="cross-attention cache slides, but must hold the whole source"):
        model(**prompts(), decoder_input_ids=torch.ones(2, 1, dtype=torch.long), past_key_values=slid)


def test_a_conversation_goes_on_from_its_cache():
    for fields in ({}, SLIDING, {"position_embedding": "learned"}, {"position_embedding": "alibi"}):
        model = tiny_model("decoder", **fields)
        expected = model.generate(**prompts(), max_new_tokens=8, do_sample=False)
        first = model.generate(**prompts(), max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        again = {"input_ids": first.sequences, "attention_mask": torch.ones_like(first.sequences)}
        cache = first.past_key_values
        rest = model.generate(**again, max_new_tokens=5, do_sample=False, past_key_values=cache)
        assert rest.tolist() == expected.tolist()


@since("5.21", "quantized cache of 8-bit floats")
def test_a_quantized_cache_of_8_bit_floats():
    """fp8 needs no other package. Rounding moves the logits a little."""
    model = tiny_model("decoder")
    _, expected = generate(model, prompts())
    _, logits = generate(model, prompts(), cache_implementation="quantized", cache_config={"backend": "fp8"})
    torch.testing.assert_close(logits[0], expected[0], rtol=1e-4, atol=1e-5)  # the prompt itself is not rounded
    assert 0 < (logits[1] - expected[1]).abs().max() < 0.1 * expected[1].abs().max()


@pytest.mark.parametrize(("backend", "package"), [("quanto", "optimum"), ("hqq", "hqq")])
def test_quantized_caches_of_other_packages(backend, package):
    model = tiny_model("decoder")
    kwargs = {"cache_implementation": "quantized", "cache_config": {"backend": backend, "q_group_size": 8}}
    if importlib.util.find_spec(package) is None:
        with pytest.raises(ImportError, match=backend):
            generate(model, prompts(), **kwargs)
    else:
        assert generate(model, prompts(), **kwargs)[0].shape == (2, NEW)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads from an accelerator")
@pytest.mark.parametrize("cache_implementation", ["offloaded", "offloaded_static"])
@stacks
def test_offloaded_caches(stack, cache_implementation):
    model = tiny_model(stack, **SLIDING).cuda()
    inputs = {name: tensor.cuda() for name, tensor in prompts().items()}
    assert_same(generate(model, inputs, cache_implementation=cache_implementation), generate(model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "fields"),
    [("inductor", {}), ("aot_eager", SLIDING | EXPERTS), ("aot_eager", {"position_embedding": "alibi"})],
)
@stacks
def test_compiled_decoding(stack, backend, fields):
    """One graph for every step of a static cache, compiled once for a batch of this shape. Where layers slide there
    are three: their caches count in a Python int, and differ before and after the window is full."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = tiny_model(stack, **fields)
    compile_config = CompileConfig(fullgraph=True, mode=None, backend=backend)
    compile_config._compile_all_devices = True  # generate compiles on accelerators only, unless told
    compiled = {"cache_implementation": "static", "compile_config": compile_config}
    expected = generate(model, prompts())
    assert_same(generate(model, prompts(), **compiled), expected)
    assert 0 < counters["stats"]["unique_graphs"] <= (3 if "sliding_window" in fields else 1)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(generate(model, prompts(), **compiled), expected)


# -- padding ----------------------------------------------------------------------------------------------------------


@variants
def test_a_left_padded_batch_gives_the_tokens_of_each_prompt_alone(fields):
    model = tiny_model("decoder", **fields)
    long, short = prompts(1), prompts(1, PROMPT - 3)
    alone = [generate(model, prompt)[0].tolist()[0] for prompt in (long, short)]
    padded = pad(short, "left")
    batch = {name: torch.cat((long[name], padded[name])) for name in long}
    for kwargs in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        assert generate(model, batch, **kwargs)[0].tolist() == alone


@pytest.mark.parametrize("side", ["left", "right"])
@variants
def test_a_padded_source_gives_the_tokens_of_each_source_alone(fields, side):
    """Left of the source, absolute positions have to be counted without padding: by the configuration, or passed."""
    model = tiny_model("encoder_decoder", **fields)
    long, short = prompts(1), prompts(1, PROMPT - 3)
    alone = [generate(model, source)[0].tolist()[0] for source in (long, short)]
    padded = pad(short, side)
    batch = {name: torch.cat((long[name], padded[name])) for name in long}
    if model.config.encoder.position_embedding in ABSOLUTE:
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert generate(model, batch)[0].tolist() == alone


# -- strategies -------------------------------------------------------------------------------------------------------


@stacks
def test_sampling_is_random_and_its_limits_are_greedy(stack):
    model = tiny_model(stack)
    greedy = generate(model, prompts())[0].tolist()
    for limit in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-6}):
        assert generate(model, prompts(), do_sample=True, **limit)[0].tolist() == greedy
    for settings in ({}, {"top_k": 10}, {"top_p": 0.9, "temperature": 0.7}, {"min_p": 0.05}, {"num_beams": 2}):
        samples = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            new, _ = generate(model, prompts(), do_sample=True, num_return_sequences=2, **settings)
            assert new.shape == (4, NEW) and new.max() < VOCABULARY
            samples.append(new.tolist())
        assert samples[0] == samples[1] != samples[2]


@stacks
def test_beam_scores_are_the_log_probabilities_of_their_tokens(stack):
    model = tiny_model(stack)
    settings = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 4, "num_return_sequences": 2}
    output = model.generate(
        **prompts(), **settings, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
    )
    sequences = output.sequences
    inputs = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in prompts().items()}
    with torch.no_grad():
        if stack == "decoder":
            logits = model(sequences).logits[:, PROMPT - 1 : -1]
        else:
            logits = model(**inputs, decoder_input_ids=sequences).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, sequences[:, -NEW:, None])[..., 0].sum(-1)
    torch.testing.assert_close(output.sequences_scores, chosen, rtol=1e-4, atol=1e-5)
    assert output.sequences_scores[0] >= output.sequences_scores[1]  # the best comes first


@variants
@stacks
def test_assisted_generation_gives_the_tokens_of_the_model_itself(stack, fields):
    if stack == "decoder" and Version(transformers.__version__) < Version("5.20") and "sliding_window" in fields:
        pytest.skip("transformers has no assisted generation with sliding caches before 5.20")
    model = tiny_model(stack, **fields)
    inputs = prompts(1)
    expected = generate(model, inputs)
    assert_same(generate(model, inputs, prompt_lookup_num_tokens=3), expected)
    assert_same(generate(model, inputs, assistant_model=model), expected)  # every candidate is right
    assistant = tiny_model(stack, seed=1, num_hidden_layers=1)  # most candidates are wrong
    assert_same(generate(model, inputs, assistant_model=assistant), expected)


@stacks
def test_sampling_with_an_assistant(stack):
    model, assistant = tiny_model(stack), tiny_model(stack, num_hidden_layers=1)
    new, _ = generate(model, prompts(1), assistant_model=assistant, do_sample=True)
    assert new.shape == (1, NEW)


class AfterTwo(StoppingCriteria):
    """Stops a row after the second new token."""

    def __init__(self, prompt: int):
        self.prompt = prompt

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.prompt + 2)


@stacks
def test_stopping_criteria_and_constraints(stack):
    model = tiny_model(stack)
    inputs = prompts(1)
    free = generate(model, inputs)[0][0].tolist()
    stop = free[3]
    until = free[: free.index(stop) + 1]
    assert generate(model, inputs, eos_token_id=stop)[0][0].tolist() == until
    assert generate(model, inputs, eos_token_id=[1, stop])[0][0].tolist() == until
    criteria = StoppingCriteriaList([AfterTwo(1 if model.config.is_encoder_decoder else PROMPT)])
    assert generate(model, inputs, stopping_criteria=criteria)[0][0].tolist() == free[:2]

    legal = [5, 6, 7]
    assert set(generate(model, inputs, prefix_allowed_tokens_fn=lambda *_: legal)[0][0].tolist()) <= set(legal)
    assert free[0] not in generate(model, inputs, bad_words_ids=[[free[0]]])[0][0].tolist()
    once = generate(model, inputs, no_repeat_ngram_size=1)[0][0].tolist()
    assert len(set(once)) == NEW
    if stack == "decoder":  # transformers' guidance calls the model without a target
        guided = generate(model, inputs, guidance_scale=1.5)[0]
        assert guided.tolist() == generate(model, inputs, guidance_scale=1.5, use_cache=False)[0].tolist()


def test_a_row_that_has_ended_is_padded():
    model = tiny_model("decoder")
    free, _ = generate(model, prompts())
    stop = free[0, 0].item()
    assert stop not in free[1]
    new, _ = generate(model, prompts(), eos_token_id=stop, pad_token_id=0)
    assert new[0].tolist() == [stop] + [0] * (NEW - 1)
    assert new[1].tolist() == free[1].tolist()


@stacks
def test_generation_from_embeddings(stack):
    model = tiny_model(stack, embedding_multiplier=2.0)
    inputs = prompts()
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with_embeds = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    assert_same(generate(model, with_embeds), generate(model, inputs))


STATIC = {"cache_implementation": "static", "disable_compile": True}


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}, {"num_beams": 3}, STATIC])
@pytest.mark.parametrize("fields", [{}, SLIDING, {"position_embedding": "learned"}, {"position_embedding": "alibi"}])
@pytest.mark.parametrize("given_by", ["position_ids", "document_ids"])
def test_behind_packed_documents_the_last_one_goes_on(fields, kwargs, given_by):
    """Positions that start again say where it begins, or ids."""
    model = tiny_model("decoder", **fields)
    last = {name: tensor[:, 4:] for name, tensor in prompts().items()}
    given = {
        "position_ids": torch.cat((torch.arange(4), torch.arange(PROMPT - 4))).expand(2, -1),
        "document_ids": (torch.arange(PROMPT) >= 4).long().expand(2, -1),
    }
    packed = generate(model, {**prompts(), given_by: given[given_by]}, **kwargs)[0]
    assert packed.tolist() == generate(model, last, **kwargs)[0].tolist()


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}, {"num_beams": 3}, STATIC])
def test_behind_packed_targets_the_last_one_goes_on(kwargs):
    model, (source, target) = tiny_model("encoder_decoder"), (tokens(2, PROMPT), tokens(2, 5, seed=1))
    target[:, [0, 3]] = model.config.decoder_start_token_id  # `generate` puts it before a target that lacks it
    documents = {"document_ids": torch.arange(PROMPT) >= 4, "decoder_document_ids": torch.arange(5) >= 3}
    documents = {name: begun.long().expand(2, -1) for name, begun in documents.items()}
    kwargs = {"max_new_tokens": NEW, "do_sample": False, **kwargs}
    packed = model.generate(source, decoder_input_ids=target, **documents, **kwargs)
    alone = model.generate(source[:, 4:], decoder_input_ids=target[:, 3:], **kwargs)
    assert packed[:, 5:].tolist() == alone[:, 2:].tolist()


def test_a_conversation_of_packed_documents_goes_on_from_its_cache():
    model, documents = tiny_model("decoder"), (torch.arange(PROMPT) >= 4).long().expand(2, -1)
    whole = model.generate(**prompts(), document_ids=documents, max_new_tokens=6, do_sample=False)
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    first = model.generate(**prompts(), document_ids=documents, **settings)
    documents = torch.nn.functional.pad(documents, (0, 3), value=1)
    mask = torch.ones_like(first.sequences)
    second = model.generate(
        first.sequences, attention_mask=mask, document_ids=documents, **{CACHE: first[CACHE]}, **settings
    )
    assert second.sequences.tolist() == whole.tolist()


def test_a_target_that_has_begun_goes_on():
    model = tiny_model("encoder_decoder", **SLIDING)
    whole = model.generate(**prompts(), max_new_tokens=NEW, do_sample=False)
    rest = model.generate(**prompts(), max_new_tokens=NEW - 3, do_sample=False, decoder_input_ids=whole[:, :4])
    assert rest.tolist() == whole.tolist()


@stacks
def test_attentions_and_hidden_states_of_every_step(stack):
    model = tiny_model(stack, "eager")
    output = model.generate(
        **prompts(),
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    prefix, length = ("", PROMPT) if stack == "decoder" else ("decoder_", 1)
    attentions, hidden_states = output[f"{prefix}attentions"], output[f"{prefix}hidden_states"]
    assert len(attentions) == len(hidden_states) == NEW
    assert len(attentions[0]) == 2 and len(hidden_states[0]) == 3
    assert attentions[0][0].shape == (2, 4, length, length) and attentions[1][0].shape == (2, 4, 1, length + 1)
    assert hidden_states[1][0].shape == (2, 1, 32)
    if stack == "encoder_decoder":
        assert output.cross_attentions[1][0].shape == (2, 4, 1, PROMPT)
        assert output.encoder_attentions[0].shape == (2, 4, PROMPT, PROMPT)
