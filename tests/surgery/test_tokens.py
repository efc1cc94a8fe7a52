"""Tokenizers of decoders, prepared for another stack, and the embeddings of the tokens that are new."""

import pytest
import torch
from models.tiny import SIZES, redraw
from transformers import AutoTokenizer

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderForMaskedLM,
)
from hf_llm.data import make_objective, train_tokenizer
from hf_llm.surgery.tokens import add_tokens, prepare_tokenizer


@pytest.fixture
def tokenizer():
    return train_tokenizer(["some text", "and some more"], "byte", None, show_progress=False)  # 256 bytes, 3 special


def source(vocab_size: int, **fields) -> LLMDecoderForCausalLM:
    return redraw(LLMDecoderForCausalLM(LLMDecoderConfig(**{**SIZES, "vocab_size": vocab_size, **fields})))


@pytest.mark.parametrize(
    ("stack", "objective", "added", "text"),
    [
        ("encoder", "masked_lm", ["[MASK]"], "<|bos|>text<|eos|>"),
        (
            "encoder-decoder",
            "span_corruption",
            ["<mask>", *(f"<extra_id_{i}>" for i in range(100))],
            "text<|eos|>",
        ),
    ],
)
def test_what_a_stack_needs_is_added_once(tokenizer, stack, objective, added, text, tmp_path):
    before = tokenizer.get_vocab()
    with pytest.raises(ValueError, match="tokenizer"):
        make_objective(objective, tokenizer, stack).capacity(64, None)
    assert prepare_tokenizer(tokenizer, stack) == 259
    new = {token: i for token, i in tokenizer.get_vocab().items() if token not in before}
    assert sorted(new, key=new.get) == added and min(new.values()) == 259
    assert prepare_tokenizer(tokenizer, stack) == 259 + len(added)  # and nothing happens
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(each) == 259 + len(added)
        assert each.decode(each("text")["input_ids"]) == text
        assert make_objective(objective, each, stack).longest_chunk((64,) if stack == "encoder" else (64, 64)) > 30
    assert (tokenizer.cls_token, tokenizer.sep_token) == (
        ("<|bos|>", "<|eos|>") if stack == "encoder" else (None, None)
    )


def test_a_mask_among_added_tokens_is_the_mask(tokenizer):
    add_tokens(tokenizer, ["<|im_start|>", "[MASK]", "[R]"])
    assert tokenizer.mask_token == "[MASK]" and len(tokenizer) == 259 + 3
    assert set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "[MASK]", "[R]"])) == {259, 260, 261}
    add_tokens(tokenizer, ["<mask>"])  # which has one
    assert tokenizer.mask_token == "[MASK]" and len(tokenizer) == 263


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize(("rows", "expected"), [(259, 320), (320, 320), (400, 400)])
def test_new_tokens_start_from_the_mean(rows, expected, tied, tokenizer):
    """Also in rows that the decoder had, but that none of its tokens used."""
    decoder = source(rows, tie_word_embeddings=tied, lm_head_bias=True)
    model = LLMEncoderForMaskedLM.from_decoder(decoder, tokenizer=tokenizer)
    assert model.config.vocab_size == expected and len(tokenizer) == 260
    for name in ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
        old, new = decoder.get_parameter(name), model.get_parameter(name)
        assert len(new) == expected and new[:259].equal(old[:259])
        mean = old[:259].mean(0).expand(new[259:].shape)
        torch.testing.assert_close(new[259:], mean, rtol=0, atol=1e-6)
    assert model.config.pad_token_id == tokenizer.pad_token_id and model.config.eos_token_id == tokenizer.eos_token_id


def test_both_halves_get_them(tokenizer):
    decoder = source(259)
    model = LLMEncoderDecoderForConditionalGeneration.from_decoder(decoder, tokenizer=tokenizer)
    config = model.config
    assert {config.vocab_size, config.encoder.vocab_size, config.decoder.vocab_size} == {384} and len(tokenizer) == 360
    mean = decoder.model.embed_tokens.weight.mean(0)
    for table in (model.model.encoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight):
        torch.testing.assert_close(table[300], mean, rtol=0, atol=1e-6)
    assert config.decoder_start_token_id == tokenizer.bos_token_id


def test_ul2_marks_its_modes(tokenizer):
    prepare_tokenizer(tokenizer, "encoder-decoder", ["[R]", "[S]", "[X]"])
    objective = make_objective("ul2", tokenizer, "encoder-decoder", mode_tokens=True)
    assert sorted(objective.tokens.mode_ids.values()) == [360, 361, 362]
