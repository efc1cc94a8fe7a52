"""Embeddings from word vectors: every format, every tokenizer's marks, and files that are broken."""

import gzip
import struct

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMEncoderDecoderConfig,
    LLMEncoderDecoderForConditionalGeneration,
)
from hf_llm.training.word_vectors import init_embeddings_from_word_vectors, load_word_vectors, spellings


VECTORS = {
    "the": [0.5, -1.0, 0.25, 2.0],
    "Paris": [1.5, 0.125, -0.75, 1.0],
    "café": [-2.0, 0.5, 1.0, -0.5],
    "ing": [0.0, 1.0, 0.0, -1.0],
    "NASA": [3.0, -3.0, 0.5, 0.5],
}
SIZES = {
    "hidden_size": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
}


def text(header: bool) -> bytes:
    lines = [f"{len(VECTORS)} 4"] if header else []
    lines += [f"{word} {' '.join(map(str, vector))}" for word, vector in VECTORS.items()]
    return ("\n".join(lines) + "\n").encode()


def binary(separator: bytes) -> bytes:
    records = [word.encode() + b" " + struct.pack("<4f", *vector) + separator for word, vector in VECTORS.items()]
    return f"{len(VECTORS)} 4\n".encode() + b"".join(records)


FORMATS = {
    "text with a header": text(True),
    "text without": text(False),
    "text with spaces at line ends": text(True).replace(b"\n", b" \n"),
    "binary": binary(b"\n"),
    "binary without line ends": binary(b""),
}


@pytest.fixture
def write(tmp_path):
    def write_file(contents: bytes, name: str = "vectors"):
        path = tmp_path / name
        path.write_bytes(contents)
        return path

    return write_file


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("contents", FORMATS.values(), ids=FORMATS)
def test_every_format_is_read(contents, compressed, write):
    path = write(gzip.compress(contents) if compressed else contents)
    vectors = load_word_vectors(path)
    assert list(vectors) == list(VECTORS)
    for word, vector in vectors.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, VECTORS[word])
    assert list(load_word_vectors(path, {"café", "nowhere"})) == ["café"]


def test_numbers_of_a_binary_file_may_look_like_blanks_and_line_ends(write):
    number = struct.unpack("<f", b"\n \n ")[0]
    contents = b"2 2\n" + b"a " + struct.pack("<2f", number, 1.0) + b"\n" + b"b " + struct.pack("<2f", 2.0, number)
    vectors = load_word_vectors(write(contents))
    assert {word: vector.tolist() for word, vector in vectors.items()} == {"a": [number, 1.0], "b": [2.0, number]}


def test_words_with_blanks_and_words_that_come_twice(write):
    path = write(b"the 1 2\n. . . 3 4\nthe 5 6\n\n. 7 8\n")
    expected = {"the": [1.0, 2.0], ". . .": [3.0, 4.0], ".": [7.0, 8.0]}
    assert {word: vector.tolist() for word, vector in load_word_vectors(path).items()} == expected
    assert load_word_vectors(path, {"."})["."].tolist() == [7.0, 8.0]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "has no word vectors: its first line must be a word and its numbers"),
        (b"the\n", "has no word vectors"),
        (b"the 1 2\na 1\n", "line 2: 1 numbers, but the vectors have 2"),
        (b"the 1 2\na 1 x\n", "line 2: could not convert string to float"),
        (b"3 2\nthe 1 2\na 1 2\n", "is cut off: it has 2 of 3 vectors"),
        (binary(b"\n")[:-3], "is cut off: it has 4 of 5 vectors"),
        (binary(b"")[:-20], "is cut off: it has 4 of 5 vectors"),
    ],
)
def test_broken_files_are_named(contents, message, write):
    path = write(contents)
    with pytest.raises(ValueError, match=message) as error:
        load_word_vectors(path)
    assert str(path) in str(error.value)


# -- tokens -----------------------------------------------------------------------------------------------------------


def tokenizer_of(vocabulary: list[str], decoder=None) -> PreTrainedTokenizerFast:
    ids = {token: i for i, token in enumerate(["<pad>", "the_special", *vocabulary])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="the_special")


MARKS = {
    "byte level": (["Ġthe", "Ġparis", "cafÃ©", "ing", "nasa"], decoders.ByteLevel()),
    "sentencepiece": (["▁the", "▁paris", "café", "ing", "nasa"], decoders.Metaspace()),
    "wordpiece": (["the", "paris", "café", "##ing", "nasa"], decoders.WordPiece()),
    "end of word": (["the</w>", "PARIS</w>", "Café</w>", "ing", "Nasa</w>"], decoders.BPEDecoder()),
    "no decoder": (["Ġthe", "▁paris", "café", "##ing", "nasa"], None),
}


def decoder_model(tokenizer, **fields):
    torch.manual_seed(0)
    return LLMDecoderForCausalLM(LLMDecoderConfig(vocab_size=len(tokenizer) + 3, **(SIZES | fields)))


@pytest.mark.parametrize(("vocabulary", "decoder"), MARKS.values(), ids=MARKS)
def test_tokens_are_matched_without_marks_and_in_other_cases(vocabulary, decoder, write):
    tokenizer = tokenizer_of([*vocabulary, "unknown"], decoder)
    model = decoder_model(tokenizer)
    before = model.get_input_embeddings().weight.detach().clone()
    assert init_embeddings_from_word_vectors(model, tokenizer, write(text(True)), rescale=False) == 5
    after = model.get_input_embeddings().weight
    torch.testing.assert_close(after[2:7], torch.tensor(list(VECTORS.values())))
    kept = [0, 1, 7, 8, 9, 10]  # special tokens, a word without a vector, rows beyond the tokenizer
    assert torch.equal(after[kept], before[kept])
    assert model.lm_head.weight is after


def test_a_tokens_own_case_comes_first(write):
    path = write(b"us 1 1 1 1\nUS 2 2 2 2\n")
    tokenizer = tokenizer_of(["us", "US", "Us"])
    assert spellings(tokenizer, "Us") == ["Us", "us", "US"]
    model = decoder_model(tokenizer)
    assert init_embeddings_from_word_vectors(model, tokenizer, path, rescale=False) == 3
    assert model.get_input_embeddings().weight[2:5, 0].tolist() == [1.0, 2.0, 1.0]


def test_special_tokens_keep_what_they_have(write):
    tokenizer = tokenizer_of(["the"])
    model = decoder_model(tokenizer)
    before = model.get_input_embeddings().weight.detach().clone()
    assert init_embeddings_from_word_vectors(model, tokenizer, write(b"the_special 1 1 1 1\n")) == 0
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("fields", [{}, {"embedding_initializer_range": 0.5}])
def test_vectors_are_scaled_to_the_initialisation(fields, write):
    tokenizer = tokenizer_of(list(VECTORS))
    model = decoder_model(tokenizer, **fields)
    init_embeddings_from_word_vectors(model, tokenizer, write(binary(b"\n")))
    rows = model.get_input_embeddings().weight[2:7]
    assert rows.std().item() == pytest.approx(fields.get("embedding_initializer_range", 0.02))
    given = torch.tensor(list(VECTORS.values()))
    torch.testing.assert_close(rows / rows.std(), given / given.std())


@pytest.mark.parametrize("share", [True, False])
def test_both_halves_of_an_encoder_decoder_get_them(share, write):
    tokenizer = tokenizer_of(list(VECTORS))
    half = {"vocab_size": len(tokenizer), **SIZES}
    config = LLMEncoderDecoderConfig(encoder=half, decoder=half, share_embeddings=share)
    model = LLMEncoderDecoderForConditionalGeneration(config)
    assert init_embeddings_from_word_vectors(model, tokenizer, write(text(False)), rescale=False) == 5
    for stack in (model.model.encoder, model.model.decoder):
        torch.testing.assert_close(stack.embed_tokens.weight[2:], torch.tensor(list(VECTORS.values())))


def test_the_width_must_fit(write):
    tokenizer, path = tokenizer_of(list(VECTORS)), write(text(True))
    message = (
        "has vectors of 4 dimensions, but the model's embeddings have 8: choose `hidden_size=4`, or `embedding_size"
    )
    with pytest.raises(ValueError, match=message):
        init_embeddings_from_word_vectors(decoder_model(tokenizer, hidden_size=8), tokenizer, path)
    factorised = {"hidden_size": 8, "embedding_size": 4, "embedding_projection": "tokens"}
    assert init_embeddings_from_word_vectors(decoder_model(tokenizer, **factorised), tokenizer, path) == 5


def test_a_tokenizer_larger_than_the_vocabulary(write):
    model = LLMDecoderForCausalLM(LLMDecoderConfig(vocab_size=5, **SIZES))
    with pytest.raises(ValueError, match="The tokenizer has 7 tokens, but the model `vocab_size=5`"):
        init_embeddings_from_word_vectors(model, tokenizer_of(list(VECTORS)), write(text(True)))
