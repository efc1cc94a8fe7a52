"""Whole words: what is masked together, in many scripts, of every kind of tokenizer."""

import numpy as np
import pytest
import regex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_llm.data import encoding, make_objective, train_tokenizer
from hf_llm.data.encoding import encode_batch, encode_texts


SPACED = {
    "English": "They don't say snake_case in 1984, naïve  café owners!\r\n\tprint(x)  # über 3.14",
    "Russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "Greek": "Μῆνιν ἄειδε θεὰ\u0301 Πηληϊάδεω Ἀχιλῆος ᾱ\u0313\u0301 ο\u0314\u0301",
    "Arabic": "مُحَمَّدٌ رَسُولُ اللَّهِ، بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ ٱلرَّحِيمِ",
    "Hebrew": "בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। क्‍ष",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "symbols": "x \u0301y 👩\u200d👩\u200d👧 👍🏽👍🏽 🇩🇪🇫🇷 1\ufe0f\u20e3 ❤\ufe0f\u200d🔥 e\u0301\u0302f \u00a0\u0301c",
}
UNSPACED = {
    "Chinese": "人人生而自由，在尊严和权利上一律平等。GPT 模型",
    "Japanese": "すべての人間は、生まれながらにして自由て\u3099ある。コンピュータ",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน ที่นี่",
}
TEXTS = {**SPACED, **UNSPACED}
LEARNED = ("bpe", "byte", "wordpiece", "unigram", "word", "char")
BUILT = ("trimmed", "llama", "crossing", "bert", "nfkd")


def build(kind: str, documents: list[str]) -> PreTrainedTokenizerFast:
    """Tokenizers as other people train them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    options = {"vocab_size": 600, "special_tokens": special, "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        text = [*documents, *" ".join(TEXTS.values())]  # so that some of it is not unknown
        tokenizer.train_from_iterator(text, trainers.WordPieceTrainer(**options))
    elif kind == "llama":  # a space in front, bytes of unknown characters
        vocabulary = {
            token: i for i, token in enumerate([*special, *(f"<0x{b:02X}>" for b in range(256)), *"▁abcdet"])
        }
        vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(("te", "▁a"))}
        tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "e"), ("▁", "a")], unk_token="[UNK]", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFKD() if kind == "nfkd" else None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=kind != "crossing")
        tokenizer.train_from_iterator(documents, trainers.BpeTrainer(initial_alphabet=alphabet, **options))
        tokenizer.decoder = decoders.ByteLevel()
        if kind == "trimmed":
            tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {f"{token[1:-1].lower()}_token": token for token in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


@pytest.fixture(scope="module")
def tokenizer_of(documents):
    """kind -> a tokenizer trained on English, with a mask token."""
    made = {"byt5": ByT5Tokenizer(mask_token="<mask>"), "canine": CanineTokenizer()}

    def get(kind: str):
        if kind not in made and kind in LEARNED:
            size = None if kind == "byte" else 500
            made[kind] = train_tokenizer(documents, kind, size, "encoder", show_progress=False)
        elif kind not in made:
            made[kind] = build(kind, documents)
        return made[kind]

    return get


def pieces(tokenizer, ids, text: str) -> list[tuple[int, int]]:
    """Bytes of the text that each token covers: by what the tokens are, or where they do not say it, by offsets."""
    if not tokenizer.is_fast:
        sizes = [1] * len(ids) if len(ids) == len(text.encode()) else [len(c.encode()) for c in text]
    else:
        values = {c: bytes([b]) for b, c in bytes_to_unicode().items()}
        tokens = tokenizer.convert_ids_to_tokens(ids)
        readings = (
            [b"".join(values.get(c, b"?") for c in token) for token in tokens],
            [bytes([int(t[3:5], 16)]) if t.startswith("<0x") else t.replace("▁", " ").encode() for t in tokens],
        )
        if (sizes := next(([*map(len, r)] for r in readings if b"".join(r) == text.encode()), None)) is None:
            offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            return [(len(text[:a].encode()), len(text[:b].encode())) for a, b in offsets]
    ends = np.cumsum(sizes)
    return list(zip(ends - sizes, ends, strict=True))


def spans(pattern: str, text: str) -> list[tuple[int, int]]:
    return [tuple(len(text[:i].encode()) for i in m.span()) for m in regex.finditer(pattern, text)]


def encoded(tokenizer, text: str, objective) -> tuple[np.ndarray, np.ndarray]:
    row = encode_batch({"text": [text]}, tokenizer, objective, (10_000,))
    return row["tokens"][0], row["word_starts"][0]


@pytest.mark.parametrize("kind", [*LEARNED, *BUILT, "byt5", "canine"])
def test_characters_and_words_are_never_cut(tokenizer_of, kind):
    tokenizer = tokenizer_of(kind)
    objective = make_objective("masked_lm", tokenizer, "encoder", whole_word=True, mask_probability=0.4)
    for script, text in TEXTS.items():
        ids, starts = encoded(tokenizer, text, objective)
        ordinary = ~objective.tokens.is_special[ids]
        whole = spans(r"\X", text) + (spans(r"\w+", text) if script in SPACED else [])
        begin, end = np.array(pieces(tokenizer, ids, text)).T
        covers = np.array([(begin < b) & (a < end) for a, b in whole])  # (characters and words, tokens)
        for seed in range(10):
            predicted = objective(ids, np.random.default_rng(seed), word_starts=starts).predicted
            assert not predicted[~ordinary].any()
            cut = (covers & predicted).any(1) & (covers & ordinary & ~predicted).any(1)
            assert not cut.any(), [text.encode()[slice(*whole[i])].decode() for i in np.flatnonzero(cut)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello  world, don't\r\n\tsnake_case", "Hello| | world|,| don|'|t|\r\n\t|snake_case"),
        ("Привет, мир!", "Привет|,| мир|!"),
        ("हिन्दी में लिखो", "हिन्दी| में| लिखो"),
        ("안녕하세요 세계", "안녕하세요| 세계"),
        ("مُحَمَّدٌ رَسُولُ", "مُحَمَّدٌ| رَسُولُ"),
        ("我喜欢猫 GPT", "我|喜|欢|猫| GPT"),
        ("今はコンピュータです", "今|は|コンピュータ|で|す"),
        ("ที่นี่", "ที่|นี่"),
        ("👩\u200d👩\u200d👧 👍🏽🇩🇪🇫🇷1\ufe0f\u20e3", "👩\u200d👩\u200d👧| 👍🏽|🇩🇪|🇫🇷|1\ufe0f\u20e3"),
    ],
)
@pytest.mark.parametrize("kind", ["byte", "unigram", "byt5"])
def test_words(tokenizer_of, kind, text, words):
    """Of tokens small enough, words are neither cut nor joined."""
    tokenizer = tokenizer_of(kind)
    ids, starts = encoded(tokenizer, text, make_objective("masked_lm", tokenizer, "encoder", whole_word=True))
    places = [pieces(tokenizer, ids, text)[i][0] for i in np.flatnonzero(starts)] + [len(text.encode())]
    assert [text.encode()[a:b].decode() for a, b in zip(places, places[1:], strict=False)] == words.split("|")


def test_words_are_chosen_independently(documents, tokenizer_of):
    tokenizer = tokenizer_of("bpe")
    objective = make_objective("masked_lm", tokenizer, "encoder", whole_word=True, mask_probability=0.4)
    ids, starts = encoded(tokenizer, " ".join(documents[:30]), objective)
    shares = [objective(ids, np.random.default_rng(s), word_starts=starts).predicted.mean() for s in range(20)]
    assert abs(np.mean(shares) - 0.4) < 0.02
    inside = objective(ids[1:], np.random.default_rng(0), word_starts=np.zeros(len(ids) - 1, bool))
    assert inside.predicted.all()  # a chunk that begins within its only word
    with pytest.raises(ValueError, match="whole_word=True: needs word_starts"):
        objective(ids, np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["bpe", "byte", "wordpiece", "char", "byt5"])
def test_long_texts_are_tokenized_in_pieces(tokenizer_of, kind, monkeypatch):
    """Which changes nothing: neither tokens, nor what they cover, nor words."""
    tokenizer, text = tokenizer_of(kind), " ".join(TEXTS.values()) * 20
    objective = make_objective("masked_lm", tokenizer, "encoder", whole_word=True)
    whole = encoded(tokenizer, text, objective)
    sizes = encode_texts(tokenizer, [text])[0][1]
    monkeypatch.setattr(encoding, "PIECE", 2000)
    assert len(list(encoding._pieces(text))) > 5 and "".join(encoding._pieces(text)) == text
    for one, other in zip(whole, encoded(tokenizer, text, objective), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(encode_texts(tokenizer, ["short", text])[1][1], sizes)
    assert sizes.sum() == len(text.encode())
