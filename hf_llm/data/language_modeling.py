"""Objectives that predict a chunk's own tokens in place: causal, masked, prefix and supervised.

Each is a pure function of (ids, rng, config), where `ids` is a chunk of a document, (length,) ints without special
tokens around it. What stands around it (bos, cls, eos, ...) is added by `objectives.Objective`.
"""

from dataclasses import dataclass

import numpy as np

from .special_tokens import SpecialTokens


IGNORE = -100


@dataclass(frozen=True)
class Example:
    """What a model sees of one chunk.

    Attributes:
        source: (source length,) ids that are read.
        target: ids that are predicted. Objectives in place: (source length,), -100 where nothing is predicted.
            Objectives from source to target: the target sequence.
        predicted: (chunk length,) bool; which of the chunk's own tokens are predicted, for bits per byte.
    """

    source: np.ndarray
    target: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class CausalConfig:
    """Next-token prediction leaves nothing to choose."""

    tokens: SpecialTokens


def causal(ids: np.ndarray, rng: np.random.Generator, config: CausalConfig) -> Example:
    """Causal language modelling: every token but the first is predicted from those before it."""
    predicted = np.arange(len(ids)) > 0
    return Example(ids, np.where(predicted, ids, IGNORE), predicted)


@dataclass(frozen=True)
class MaskedConfig:
    """Masked language modelling.

    Attributes:
        mask_probability: expected share of chosen tokens. 0.15 in BERT, 0.3 in ModernBERT.
        mask_share, random_share: of the chosen, which share becomes the mask token, which a random ordinary token;
            the rest stays as it is. BERT's 0.8 and 0.1.
        whole_word: choose words instead of tokens; all tokens of a chosen word are predicted. What a word is, in any
            script and of any tokenizer: see [`hf_llm.data.encoding.word_starts`].
    """

    tokens: SpecialTokens
    mask_probability: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_word: bool = False

    def __post_init__(self):
        self.tokens.require("mask", "masked_lm")
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability={self.mask_probability!r}: must be between 0 and 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share={self.mask_share!r}, random_share={self.random_share!r}: must be at least 0 and sum to "
                "at most 1"
            )


def masked_lm(
    ids: np.ndarray, rng: np.random.Generator, config: MaskedConfig, word_starts: np.ndarray | None = None
) -> Example:
    """Masked language modelling (https://arxiv.org/abs/1810.04805; with 30 %: https://arxiv.org/abs/2412.13663).

    Tokens (or words) are chosen independently of each other; special tokens never are. A chunk with candidates gets
    at least one chosen, so that a short document is not read in vain.

    Args:
        word_starts: (length,) bool, which tokens begin a word; only read with `config.whole_word`.
    """
    candidates = ~config.tokens.is_special[ids]
    unit = np.arange(len(ids))
    if config.whole_word:
        if word_starts is None:
            raise ValueError("whole_word=True: needs word_starts, which tokens begin a word; packed rows have them")
        unit = np.cumsum(word_starts) - word_starts[:1]  # from 0, also if the chunk begins within a word
    score = rng.random(len(ids))[unit]
    chosen = candidates & (score < config.mask_probability)
    if candidates.any() and not chosen.any():
        chosen = candidates & (score == score[candidates].min())
    action = rng.random(len(ids))
    source = np.where(
        action < config.mask_share + config.random_share, rng.choice(config.tokens.ordinary, len(ids)), ids
    )
    source = np.where(action < config.mask_share, config.tokens.ids["mask"], source)
    return Example(np.where(chosen, source, ids), np.where(chosen, ids, IGNORE), chosen)


@dataclass(frozen=True)
class PrefixConfig:
    """Prefix language modelling.

    Attributes:
        shortest, longest: bounds of the prefix, as shares of the chunk; its length is uniform between them.
    """

    tokens: SpecialTokens
    shortest: float = 0.25
    longest: float = 0.75

    def __post_init__(self):
        if not 0 <= self.shortest <= self.longest <= 1:
            raise ValueError(
                f"shortest={self.shortest!r}, longest={self.longest!r}: must be 0 <= shortest <= longest <= 1"
            )

    def bounds(self, length: int) -> tuple[int, int]:
        """Smallest and largest prefix of a chunk; never empty: nothing foretells a first token."""
        smallest = max(1, int(self.shortest * length))
        return smallest, max(smallest, int(self.longest * length))


def prefix_lm(ids: np.ndarray, rng: np.random.Generator, config: PrefixConfig) -> Example:
    """Prefix language modelling (https://arxiv.org/abs/1910.10683, 3.2.3): the prefix is read, the rest predicted."""
    smallest, largest = config.bounds(len(ids))
    return _split(ids, int(rng.integers(smallest, largest, endpoint=True)))


@dataclass(frozen=True)
class SupervisedConfig:
    """Source to target leaves nothing to choose."""

    tokens: SpecialTokens


def supervised(ids: np.ndarray, rng: np.random.Generator, config: SupervisedConfig, source_length: int) -> Example:
    """Supervised pairs: `ids` is the source, `source_length` tokens, and the target behind it."""
    return _split(ids, source_length)


def _split(ids: np.ndarray, at: int) -> Example:
    return Example(ids[:at], ids[at:], np.arange(len(ids)) >= at)
