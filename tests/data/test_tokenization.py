"""Tokenizers: every algorithm and stack trained, saved, opened and round-tripped; bad input."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_llm.data import ALGORITHMS, STACK_TOKENS, train_tokenizer


# (algorithm, what must come back from it)
ROUND_TRIPS = {
    "bpe": lambda text: text,
    "byte": lambda text: text,
    "unigram": lambda text: text.replace("▁", " "),
}
HARD = [
    "",
    " ",
    "  a  b\t\n\n c ",
    "\r\n",
    "naïve ☃ 🦊👩‍👩‍👧 \u0000 \ufeff e\u0301",
    "<|eos|> </s> [CLS]",
    "▁x▁▁ y",
    "中文。日本語",
]


@pytest.fixture(scope="module")
def trained(documents):
    """(algorithm, stack) -> tokenizer, trained once."""
    made = {}

    def get(algorithm, stack="decoder"):
        if (algorithm, stack) not in made:
            size = None if algorithm == "byte" else 600
            made[algorithm, stack] = train_tokenizer(documents, algorithm, size, stack, show_progress=False)
        return made[algorithm, stack]

    return get


def random_text(rng) -> str:
    """Any Unicode but surrogates."""
    points = rng.choice(
        [rng.integers(0, 0x80), rng.integers(0xA0, 0xD7FF), rng.integers(0xE000, 0x10FFFF), 32, 10], 40
    )
    return "".join(map(chr, points))


@pytest.mark.parametrize("algorithm", ROUND_TRIPS)
def test_promised_round_trips(trained, algorithm):
    tokenizer = trained(algorithm)
    rng = np.random.default_rng(0)
    for text in HARD + [random_text(rng) for _ in range(200)]:
        for plain in (True, False):
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
            assert tokenizer.decode(ids) == ROUND_TRIPS[algorithm](text)


def test_char_round_trip_within_its_alphabet(trained, documents):
    tokenizer = trained("char")
    for text in documents:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer("字", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("algorithm", ["wordpiece", "word"])
def test_lossy_schemes_keep_the_words(trained, algorithm):
    tokenizer = trained(algorithm)
    text = "the quick brown fox jumps"
    assert tokenizer.decode(tokenizer("the  quick\nbrown fox jumps", add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.unk_token_id in tokenizer("字")["input_ids"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("stack", STACK_TOKENS)
def test_saved_tokenizer_opens_and_frames(trained, tmp_path, algorithm, stack):
    tokenizer = trained(algorithm, stack)
    tokenizer.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    text = "the quick brown café ☃\n  print(x)"
    assert opened(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert set(opened(text)) == {"input_ids", "attention_mask"}
    assert opened.is_fast and len(opened) == max(opened.get_vocab().values()) + 1 <= 600
    for role, token in STACK_TOKENS[stack].items():
        assert getattr(opened, role) == token and opened.convert_tokens_to_ids(token) is not None
    assert opened.pad_token_id == 0
    bare = opened(text, add_special_tokens=False)["input_ids"]
    framed = {
        "decoder": [opened.bos_token_id, *bare],
        "encoder": [opened.cls_token_id, *bare, opened.sep_token_id],
        "encoder-decoder": [*bare, opened.eos_token_id],
    }
    assert opened(text)["input_ids"] == framed[stack]
    if stack == "encoder-decoder":
        sentinels = opened.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(100)])
        assert len(set(sentinels)) == 100 and opened.unk_token_id not in sentinels
        assert opened("<extra_id_7>")["input_ids"] == [sentinels[7], opened.eos_token_id]


def test_offsets_are_those_of_the_word(trained):
    """A space belongs to the token, not to what it stands for: the text of an entity is `text[start:end]`."""
    for algorithm in ("bpe", "wordpiece", "word"):
        text = "the quick café fox"
        encoded = trained(algorithm, "encoder")(text, return_offsets_mapping=True, add_special_tokens=False)
        words = {}
        for number, (start, end) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
            words[number] = (words.get(number, (start, end))[0], end)
        assert [text[start:end] for start, end in words.values()] == text.split()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_mask_takes_the_space_of_its_word(trained, algorithm, tmp_path):
    """Where the space is part of the word's tokens, as in training; elsewhere it stays."""
    trained(algorithm, "encoder").save_pretrained(tmp_path)
    for tokenizer in (trained(algorithm, "encoder"), AutoTokenizer.from_pretrained(tmp_path)):
        masked = tokenizer("the [MASK] fox", add_special_tokens=False)["input_ids"]
        before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("the", " fox"))
        space = tokenizer(" ", add_special_tokens=False)["input_ids"] if algorithm in ("byte", "char") else []
        assert masked == [*before, *space, tokenizer.mask_token_id, *after]


def test_training_is_deterministic(documents):
    for algorithm in ("bpe", "unigram", "char"):
        first, second = (train_tokenizer(documents, algorithm, 400, show_progress=False) for _ in range(2))
        assert first.get_vocab() == second.get_vocab()


def test_chat_template(documents):
    tokenizer = train_tokenizer(documents, "bpe", 400, chat_template=True, show_progress=False)
    messages = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|bos|><|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\njumps<|im_end|>\n"
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "jumps<|im_end|>"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n")


def test_normalization(documents):
    tokenizer = train_tokenizer(documents, "bpe", 400, normalization="lowercase", show_progress=False)
    assert tokenizer("THE Fox")["input_ids"] == tokenizer("the fox")["input_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "bep"}, "algorithm='bep'.*bpe, byte, wordpiece, unigram, word, char"),
        ({"stack": "both"}, "stack='both'.*decoder, encoder, encoder-decoder"),
        ({"normalization": "nfd"}, "normalization='nfd'.*none, nfc"),
        ({"vocab_size": 200}, "vocab_size=200.*at least 260"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"documents": []}, "empty"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(**{"documents": ["text"], "vocab_size": 400, "show_progress": False} | options)


def test_byte_warns_of_a_vocabulary_size():
    with pytest.warns(UserWarning, match="vocab_size=5000 has no effect"):
        train_tokenizer(["text"], "byte", 5000, show_progress=False)
