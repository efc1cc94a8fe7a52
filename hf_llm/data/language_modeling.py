"""Objectives that predict a chunk's own tokens: causal, masked, prefix and supervised."""

from dataclasses import dataclass

import numpy as np

from .objectives import CHUNK, DOCUMENT, IGNORE, OBJECTIVES, PAIR, PROMPT, Example, Objective


def split_at(ids: np.ndarray, place: int) -> Example:
    """What comes before a place is read, what follows predicted."""
    return Example(ids[:place], ids[place:], np.arange(len(ids)) >= place)


@dataclass(frozen=True, kw_only=True)
class Causal(Objective):
    """Causal language modelling: every token but the first is predicted from those before it."""

    frames = {"decoder": DOCUMENT}
    in_place = True

    def corrupt(self, ids, rng, mode, word_starts) -> Example:
        predicted = np.arange(len(ids)) > 0
        return Example(ids, np.where(predicted, ids, IGNORE), predicted)


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Masked language modelling (https://arxiv.org/abs/1810.04805; with 30 %: https://arxiv.org/abs/2412.13663).

    Tokens (or words) are chosen independently of each other; special tokens never are. A chunk with candidates gets
    at least one chosen, so that a short document is not read in vain.

    Attributes:
        mask_probability: expected share of chosen tokens. 0.15 in BERT, 0.3 in ModernBERT.
        mask_share, random_share: of the chosen, which share becomes the mask token, which a random ordinary token;
            the rest stays as it is. BERT's 0.8 and 0.1.
        whole_word: choose words instead of tokens; all tokens of a chosen word are predicted. What a word is, in any
            script and of any tokenizer: see [`hf_llm.data.encoding.word_starts`].
    """

    frames = {"encoder": CHUNK}
    in_place = True

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

    @property
    def whole_words(self) -> bool:
        return self.whole_word

    def corrupt(self, ids, rng, mode, word_starts) -> Example:
        candidates = ~self.tokens.is_special[ids]
        unit = np.arange(len(ids))
        if self.whole_word:
            if word_starts is None:
                raise ValueError(
                    "whole_word=True: needs word_starts, which tokens begin a word; packed rows have them"
                )
            unit = np.cumsum(word_starts) - word_starts[:1]  # from 0, also if the chunk begins within a word
        score = rng.random(len(ids))[unit]
        chosen = candidates & (score < self.mask_probability)
        if candidates.any() and not chosen.any():
            chosen = candidates & (score == score[candidates].min())
        action = rng.random(len(ids))
        drawn = rng.choice(self.tokens.ordinary, len(ids))
        source = np.where(action < self.mask_share + self.random_share, drawn, ids)
        source = np.where(action < self.mask_share, self.tokens.ids["mask"], source)
        return Example(np.where(chosen, source, ids), np.where(chosen, ids, IGNORE), chosen)


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
    """Prefix language modelling (https://arxiv.org/abs/1910.10683, 3.2.3): the prefix is read, the rest predicted.

    Attributes:
        shortest, longest: bounds of the prefix, as shares of the chunk; its length is uniform between them.
    """

    frames = {"decoder": DOCUMENT, "encoder-decoder": PAIR}
    exact = False

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

    def raw_lengths(self, length, mode):
        if self.stack == "decoder":
            return length, 0  # the two are joined, wherever the cut is
        smallest, largest = self.bounds(length)
        return largest, length - smallest

    def corrupt(self, ids, rng, mode, word_starts) -> Example:
        smallest, largest = self.bounds(len(ids))
        return split_at(ids, int(rng.integers(smallest, largest, endpoint=True)))


@dataclass(frozen=True, kw_only=True)
class Supervised(Objective):
    """Supervised pairs: a document is its source, `mode` tokens, and the target behind it."""

    frames = {"encoder-decoder": PAIR, "decoder": PROMPT}
    pairs = True

    def raw_lengths(self, length, mode):
        return mode, length - mode

    def corrupt(self, ids, rng, mode, word_starts) -> Example:
        return split_at(ids, mode)


OBJECTIVES.update(causal=Causal, masked_lm=MaskedLM, prefix_lm=PrefixLM, supervised=Supervised)
