"""Exports run by CTranslate2 on the CPU in float32, from the converter that its users call: the same outputs within
1e-4 and the same greedy tokens.

What it does not know is left out: families that its converter has no loader for, softcaps (gemma2, t5gemma), prompts
longer than a window, the length that Llama 3's RoPE was scaled from, and GPT-NeoX, Phi and Phi-3, of which it reads
fields that transformers 5 has dropped.
"""

import ctranslate2
import numpy as np
import pytest
import torch
from ctranslate2.converters import TransformersConverter
from interop.test_encoder_decoders import gemma_halves
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_llm_cli as cli

from .exports import export, prompts


NEW = 32
TOLERANCE = 1e-4
ON_CPU = {"device": "cpu", "compute_type": "float32", "inter_threads": 1, "intra_threads": 1}

THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
NO_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}
EOS = {"eos_token_id": 2, "forced_eos_token_id": None}

# what is run: family, and native fields on top of the small configuration of its tests
DECODERS = {
    "qwen3": ("qwen3", THETA),
    "qwen3 wide heads": ("qwen3", {"head_dim": 16}),
    "qwen2": ("qwen2", THETA),
    "llama": ("llama", THETA),
    "llama tied": ("llama", LINEAR | {"tie_word_embeddings": True}),
    "mistral": ("mistral", THETA),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", GEMMA | NO_CAPS),
    "gemma3_text": ("gemma3_text", GEMMA),
    "gpt2": ("gpt2", {}),
    "gptj": ("gptj", {}),
    "opt": ("opt", {"vocab_size": 64}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
}
ENCODERS = {
    "bert": {"type_vocab_size": 2},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "distilbert": {},
}
ENCODER_DECODERS = {
    "t5": ("t5", EOS),
    "t5 v1.1": ("t5", EOS | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", EOS),
    "umt5": ("umt5", EOS),
    "bart": ("bart", EOS),
    "bart scaled": ("bart", EOS | {"scale_embedding": True}),
    "mbart": ("mbart", EOS),
    "pegasus": ("pegasus", EOS | {"pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": 1}),
    "marian": ("marian", EOS | {"pad_token_id": 60, "decoder_start_token_id": 60}),
    "t5gemma": ("t5gemma", gemma_halves(**GEMMA | NO_CAPS, eos_token_id=2, bos_token_id=1)),
}


def convert(folder) -> str:
    return TransformersConverter(str(folder / "native")).convert(str(folder / "ctranslate2"))


def as_tokens(tokenizer, ids: torch.LongTensor) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]


def greedy(model, ids: torch.LongTensor, pad: int) -> list[list[int]]:
    """`NEW` tokens for each prompt, none of them the end or padding."""
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "suppress_tokens": [pad]}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=pad, **options)
    return output[:, -NEW:].tolist()


def assert_close(actual, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(np.array(actual)), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("family, fields", DECODERS.values(), ids=DECODERS)
def test_decoders(family, fields, tmp_path):
    model, tokenizer = export(family, tmp_path, **fields)
    generator = ctranslate2.Generator(convert(tmp_path), **ON_CPU)
    ids = prompts()
    with torch.no_grad():
        expected = model(ids).logits
    assert_close(np.array(generator.forward_batch(as_tokens(tokenizer, ids)))[..., : expected.shape[-1]], expected)
    results = generator.generate_batch(
        as_tokens(tokenizer, ids),
        beam_size=1,
        max_length=NEW,
        min_length=NEW,
        suppress_sequences=[[tokenizer.pad_token]],
        include_prompt_in_result=False,
    )
    assert [result.sequences_ids[0] for result in results] == greedy(model, ids, tokenizer.pad_token_id)


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(family, tmp_path):
    model, _ = export(family, tmp_path, **ENCODERS[family])
    ids = prompts()
    with torch.no_grad():
        expected = model.base_model(ids).last_hidden_state
    output = ctranslate2.Encoder(convert(tmp_path), **ON_CPU).forward_batch(ids.tolist())
    assert_close(output.last_hidden_state, expected)


@pytest.mark.parametrize("family, fields", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS)
def test_encoder_decoders(family, fields, tmp_path):
    model, tokenizer = export(family, tmp_path, **fields)
    translator = ctranslate2.Translator(convert(tmp_path), **ON_CPU)
    ids = prompts()
    start = [[tokenizer.eos_token]] * len(ids) if family == "mbart" else None  # a language, which the caller chooses
    padding = [] if family == "marian" else [[tokenizer.pad_token]]  # which the converter takes out of Marian's words
    results = translator.translate_batch(
        as_tokens(tokenizer, ids),
        target_prefix=start,
        beam_size=1,
        max_decoding_length=NEW,
        min_decoding_length=NEW,
        suppress_sequences=padding,
    )
    found = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]
    assert found == greedy(model, ids, tokenizer.pad_token_id)


@pytest.mark.slow
def test_decoder_of_the_demo(demo, tmp_path):
    """Trained by the demo's recipe: more than 64 greedy tokens for each prompt, and the logits of real text."""
    cli.main(["export", str(demo), str(tmp_path / "native")])
    generator = ctranslate2.Generator(convert(tmp_path), **ON_CPU)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(demo).eval(), AutoTokenizer.from_pretrained(demo)
    for prompt in ("def fibonacci(n):", "class Stack:", "import os\nimport sys\n\n\ndef main():", "#"):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = inputs["input_ids"]
        expected = model.generate(**inputs, max_new_tokens=96, min_new_tokens=96, do_sample=False)[0, ids.shape[1] :]
        (result,) = generator.generate_batch(
            as_tokens(tokenizer, ids), beam_size=1, max_length=96, min_length=96, include_prompt_in_result=False
        )
        assert result.sequences_ids[0] == expected.tolist()
    text = tokenizer(open(__file__).read(), truncation=True, max_length=200, return_tensors="pt")
    with torch.no_grad():
        expected = model(**text).logits
    assert_close(generator.forward_batch(as_tokens(tokenizer, text["input_ids"])), expected)
