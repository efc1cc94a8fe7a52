"""Training tokenizers: six algorithms, the special tokens of three stacks, one saved format.

`train_tokenizer` returns a `PreTrainedTokenizerFast`; saved with `save_pretrained`, `AutoTokenizer` opens it without
any code of this package. A new algorithm is one entry of `ALGORITHMS`, a new stack one entry of `STACK_TOKENS`.
"""

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast


NUM_SENTINELS = 100  # as in T5

# stack -> role -> token. The order is the order of ids: padding is 0 everywhere.
STACK_TOKENS = {
    "decoder": {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"},
    "encoder": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "encoder-decoder": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"},
}
WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's splitting without the contractions
UNK_TOKEN = "<|unk|>"  # added to a decoder's tokens when the algorithm cannot do without
CHAT_TOKENS = ["<|im_start|>", "<|im_end|>"]
# What `tokenizer(text)` adds. A decoder's prompt must stay open, so eos is added by the data pipeline, not here.
TEMPLATES = {
    "decoder": ("{bos_token} $A", "{bos_token} $A $B"),
    "encoder": ("{cls_token} $A {sep_token}", "{cls_token} $A {sep_token} $B:1 {sep_token}:1"),
    "encoder-decoder": ("$A {eos_token}", "$A {eos_token} $B {eos_token}"),
}
# ChatML; `generation` marks what the assistant said, which TRL's assistant-only loss trains on.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NORMALIZERS = {
    "none": None,
    "nfc": normalizers.NFC,
    "nfkc": normalizers.NFKC,
    "lowercase": lambda: normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
}


@dataclass(frozen=True)
class Algorithm:
    """One way of training a tokenizer.

    Attributes:
        train: (documents, settings of a trainer, unk token) -> `Tokenizer`; the settings are `vocab_size`,
            `special_tokens` and `show_progress`.
        loses: what a round trip may change; "" if decode(encode(text)) == text for every text.
        needs_unk: what it has not seen becomes an unknown token.
        alphabet: entries that a vocabulary has before anything is learned.
    """

    train: Callable[[Iterator[str], dict, str | None], Tokenizer]
    loses: str = ""
    needs_unk: bool = True
    alphabet: int = 0


def _assembled(model, pre_tokenizer, decoder=None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def _trained(tokenizer: Tokenizer, documents: Iterator[str], trainer) -> Tokenizer:
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _byte_level(model) -> Tokenizer:
    return _assembled(model, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def _train_bpe(documents, settings, unk) -> Tokenizer:
    """Byte-level BPE (GPT-2, Radford et al. 2019): every byte is in the alphabet, so nothing is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(_byte_level(models.BPE()), documents, trainers.BpeTrainer(**settings, initial_alphabet=alphabet))


def _train_byte(documents, settings, unk) -> Tokenizer:
    """One token per byte: a byte-level BPE without merges (ByT5, https://arxiv.org/abs/2105.13626). Not trained."""
    alphabet = settings["special_tokens"] + sorted(pre_tokenizers.ByteLevel.alphabet())
    return _byte_level(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))


def _train_wordpiece(documents, settings, unk) -> Tokenizer:
    """WordPiece with BERT's splitting (https://arxiv.org/abs/1810.04805)."""
    model = models.WordPiece(unk_token=unk)
    tokenizer = _assembled(model, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece())
    trainer = trainers.WordPieceTrainer(**settings, limit_alphabet=settings["vocab_size"] // 4)
    return _trained(tokenizer, documents, trainer)


def _train_unigram(documents, settings, unk) -> Tokenizer:
    """Unigram language model (https://arxiv.org/abs/1804.10959) as in SentencePiece: spaces as U+2581, byte fallback.

    Pieces stay within words, numbers, punctuation or whitespace runs, and no space is put before the text, so that
    only a literal U+2581 changes in a round trip. The trainer knows nothing of byte fallback: it learns a vocabulary
    that is 256 smaller, and the byte pieces are put in behind the special tokens with the score of the rarest piece.
    """
    specials = settings["special_tokens"]
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    pre_tokenizer = pre_tokenizers.Sequence([words, metaspace])
    trainer = trainers.UnigramTrainer(**{**settings, "vocab_size": settings["vocab_size"] - 256}, unk_token=unk)
    learner = _trained(_assembled(models.Unigram(), pre_tokenizer), documents, trainer)
    vocabulary = json.loads(learner.to_str())["model"]["vocab"]  # only the JSON tells the scores
    learned = [(piece, round(score, 6)) for piece, score in vocabulary if piece not in specials]
    learned.sort(key=lambda entry: (-entry[1], entry[0]))  # the trainer leaves ties in random order
    floor = min((score for _, score in learned), default=0.0)
    vocabulary = [(s, 0.0) for s in specials] + [(f"<0x{b:02X}>", floor) for b in range(256)] + learned
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _assembled(
        models.Unigram(vocabulary, unk_id=specials.index(unk), byte_fallback=True), pre_tokenizer, decoder
    )


def _train_word(documents, settings, unk) -> Tokenizer:
    """The most frequent words and punctuation runs; the rest is unknown."""
    tokenizer = _assembled(models.WordLevel(unk_token=unk), pre_tokenizers.Whitespace())
    return _trained(tokenizer, documents, trainers.WordLevelTrainer(**settings))


def _train_char(documents, settings, unk) -> Tokenizer:
    """The most frequent characters (ties by code point); the rest is unknown."""
    counts, specials = Counter(), settings["special_tokens"]
    for text in documents:
        counts.update(text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))[: settings["vocab_size"] - len(specials)]
    model = models.WordLevel({token: i for i, token in enumerate(specials + ranked)}, unk_token=unk)
    return _assembled(model, pre_tokenizers.Split(Regex(r"(?m)[\s\S]"), "isolated"), decoders.Fuse())


ALGORITHMS = {
    "bpe": Algorithm(_train_bpe, needs_unk=False, alphabet=256),
    "byte": Algorithm(_train_byte, needs_unk=False, alphabet=256),
    "wordpiece": Algorithm(_train_wordpiece, "whitespace, control and unseen characters"),
    "unigram": Algorithm(_train_unigram, "U+2581, which is read back as a space", alphabet=256),
    "word": Algorithm(_train_word, "whitespace and words outside the vocabulary"),
    "char": Algorithm(_train_char, "characters outside the vocabulary"),
}


def train_tokenizer(
    documents: Iterable[str],
    algorithm: str = "bpe",
    vocab_size: int | None = 8192,
    stack: str = "decoder",
    *,
    normalization: str = "none",
    chat_template: bool = False,
    extra_special_tokens: Iterable[str] = (),
    model_max_length: int | None = None,
    show_progress: bool = True,
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer.

    Args:
        documents: the text; read once.
        algorithm: a key of `ALGORITHMS`.
        vocab_size: entries in all, special tokens included. Fewer come out where the text has not enough to learn
            from. `byte` always has 256 + special tokens, whatever is asked.
        stack: a key of `STACK_TOKENS`; decides the special tokens and what `tokenizer(text)` adds: `bos` before a
            decoder's text, `cls` and `sep` around an encoder's, `eos` after an encoder-decoder's.
        normalization: a key of `NORMALIZERS`; anything but "none" gives up exact round trips.
        chat_template: add ChatML's tokens and template, with `{% generation %}` around the assistant's turns.
        extra_special_tokens: further ones, e.g. UL2's mode tokens "[R]", "[S]", "[X]".
        model_max_length: recorded in the tokenizer.

    Raises:
        ValueError: unknown algorithm, stack or normalization, a vocabulary too small for what it must hold, no text.
    """
    scheme = _choose("algorithm", algorithm, ALGORITHMS)
    roles = dict(_choose("stack", stack, STACK_TOKENS))
    normalizer = _choose("normalization", normalization, NORMALIZERS)
    if scheme.needs_unk:
        roles.setdefault("unk_token", UNK_TOKEN)
    sentinels = [f"<extra_id_{i}>" for i in range(NUM_SENTINELS)] if stack == "encoder-decoder" else []
    extra = sentinels + (CHAT_TOKENS if chat_template else []) + list(extra_special_tokens)
    specials = list(dict.fromkeys([*roles.values(), *extra]))
    vocab_size = _checked_vocab_size(algorithm, vocab_size, len(specials))

    texts = _non_empty(documents)
    if normalizer is not None:
        texts = map(normalizer().normalize_str, texts)
    settings = {"vocab_size": vocab_size, "special_tokens": specials, "show_progress": show_progress}
    tokenizer = scheme.train(texts, settings, roles.get("unk_token"))
    tokenizer.add_special_tokens(specials)
    if normalizer is not None:
        tokenizer.normalizer = normalizer()
    single, pair = (template.format(**roles) for template in TEMPLATES[stack])
    ids = [(token, tokenizer.token_to_id(token)) for token in roles.values()]
    tokenizer.post_processor = post_processor(tokenizer, single, pair, ids)
    if mask := roles.get("mask_token"):
        roles["mask_token"] = mask_token(mask, tokenizer.get_vocab())
        tokenizer.add_special_tokens([roles["mask_token"]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **roles,
        extra_special_tokens=extra,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **({"model_max_length": model_max_length} if model_max_length else {}),
    )
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE if "bos_token" in roles else CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
    return fast


def mask_token(token: str, vocabulary: Iterable[str]) -> AddedToken:
    """A mask that takes the space before it where the tokens of words have theirs, as RoBERTa's does: "a [MASK]"."""
    return AddedToken(token, lstrip=any(t[0] in "Ġ▁" and len(t) > 1 for t in vocabulary if t), special=True)


def post_processor(tokenizer: Tokenizer, single: str, pair: str, ids: list[tuple[str, int]]):
    """What puts special tokens around texts, and leaves the spaces of byte-level tokens out of their offsets."""
    template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    is_byte_level = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    return processors.Sequence([processors.ByteLevel(trim_offsets=True), template]) if is_byte_level else template


def _choose(field: str, value: str, table: dict):
    if value not in table:
        raise ValueError(f"{field}={value!r}: must be one of {', '.join(table)}")
    return table[value]


def _checked_vocab_size(algorithm: str, vocab_size: int | None, num_specials: int) -> int:
    alphabet = ALGORITHMS[algorithm].alphabet
    smallest = num_specials + alphabet + (algorithm != "byte")
    if algorithm == "byte":
        if vocab_size not in (None, smallest):
            warnings.warn(
                f"vocab_size={vocab_size} has no effect with algorithm='byte': it is {smallest}", stacklevel=3
            )
        return smallest
    if vocab_size is None or vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size}: algorithm={algorithm!r} needs at least {smallest} "
            f"({num_specials} special tokens, {alphabet} bytes, 1 learned)"
        )
    return vocab_size


def _non_empty(documents: Iterable[str]) -> Iterator[str]:
    """The documents, unless there are none."""
    iterator = iter(documents)
    first = next(iterator, None)
    if first is None:
        raise ValueError("documents: the corpus is empty")
    return itertools.chain([first], iterator)
