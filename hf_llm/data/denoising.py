"""Denoising objectives from a corrupted source to a target: T5 span corruption, BART, UL2's mixture of denoisers.

The corruptions are pure functions of ids, (length,) ints, and a random generator; the objectives below say which one,
how long its results are, and what may be chosen.
"""

from dataclasses import dataclass

import numpy as np

from .language_modeling import split_at
from .objectives import JOINED_PAIR, OBJECTIVES, PAIR, Example, Objective
from .special_tokens import MODE_TOKENS, sentence_ends


def noise_counts(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """How many tokens and how many spans of a chunk are noise; a chunk of one token has none.

    The arithmetic of `random_spans_noise_mask` in T5's preprocessors.py.
    """
    if length < 2:
        return 0, 0
    num_tokens = min(max(round(length * noise_density), 1), length - 1)
    num_spans = max(round(num_tokens / mean_span_length), 1)
    return num_tokens, min(num_spans, length - num_tokens)


def noise_mask(length: int, rng: np.random.Generator, noise_density: float, mean_span_length: float) -> np.ndarray:
    """Which tokens are noise, (length,) bool: spans of random lengths, kept and noise in turn, a kept one first."""
    num_tokens, num_spans = noise_counts(length, noise_density, mean_span_length)
    if not num_spans:
        return np.zeros(length, bool)
    kept = _random_segments(length - num_tokens, num_spans, rng)
    noise = _random_segments(num_tokens, num_spans, rng)
    return np.repeat(np.tile([False, True], num_spans), np.stack([kept, noise], axis=1).ravel())


def _random_segments(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths (>= 1) of `segments` segments that sum to `items`, every such list equally likely."""
    cuts = np.sort(rng.choice(items - 1, segments - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [items])))


def _with_sentinels(ids: np.ndarray, replaced: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """`ids` with each run of `replaced` tokens made one sentinel, numbered from the left."""
    first = replaced & ~np.concatenate(([False], replaced[:-1]))
    out = ids.copy()
    out[first] = sentinels[: first.sum()]
    return out[first | ~replaced]


def corrupt_spans(ids, rng, sentinels: np.ndarray, noise_density: float, mean_span_length: float) -> Example:
    """Spans of noise become sentinels in the source; the target is sentinels, each followed by its span."""
    noise = noise_mask(len(ids), rng, noise_density, mean_span_length)
    if not noise.any():
        return Example(ids, ids[:0], noise)
    return Example(_with_sentinels(ids, noise, sentinels), _with_sentinels(ids, ~noise, sentinels), noise)


def permute_sentences(ids: np.ndarray, rng: np.random.Generator, sentence_ends: np.ndarray) -> np.ndarray:
    """Shuffles the sentences of a chunk; what follows the last end is a sentence too."""
    cuts = np.flatnonzero(sentence_ends[ids][:-1]) + 1
    sentences = np.split(ids, cuts)
    return np.concatenate([sentences[i] for i in rng.permutation(len(sentences))])


def infill(
    ids: np.ndarray, rng: np.random.Generator, mask_id: int, ratio: float, mean_span_length: float
) -> np.ndarray:
    """Text infilling: spans with Poisson lengths become one mask token each; an empty span inserts a mask token.

    Spans do not overlap, together they hold `ratio` of the tokens, and every placement is equally likely. Empty spans
    are dropped where there would be more masks than tokens taken out: the result is never longer than `ids`.
    """
    budget = round(len(ids) * ratio)
    if not budget:
        return ids
    drawn = rng.poisson(mean_span_length, 1 + int(4 * budget / min(1, mean_span_length)))
    lengths = drawn[: np.searchsorted(np.cumsum(drawn), budget) + 1]
    lengths[-1] += budget - lengths.sum()  # the last one is cut (or, past all likelihood, stretched) to fit
    lengths = np.delete(lengths, np.flatnonzero(lengths == 0)[: max(0, len(lengths) - budget)])
    # A span is an item among the kept tokens; items are laid out left to right, a span taking `lengths` tokens.
    items = len(ids) - budget + len(lengths)
    is_span = np.zeros(items, bool)
    is_span[rng.choice(items, len(lengths), replace=False)] = True
    width = np.ones(items, np.int64)
    width[is_span] = lengths
    start = np.cumsum(width) - width
    return np.where(is_span, mask_id, ids[np.minimum(start, len(ids) - 1)])


@dataclass(frozen=True)
class Denoiser:
    """Span corruption with its mode in UL2: "R", "X", or "S", which predicts the end of a chunk from its beginning.

    Attributes:
        noise_density: share of tokens that are taken out.
        mean_span_length: mean number of tokens per span taken out; of "S", whose one span is the end, not used.
    """

    mode: str
    noise_density: float
    mean_span_length: float = 0.0

    def __post_init__(self):
        if self.mode not in ("R", "S", "X"):
            raise ValueError(f"denoisers: mode={self.mode!r} must be one of R, S, X")
        if not 0 < self.noise_density < 1:
            raise ValueError(f"noise_density={self.noise_density!r}: must be between 0 and 1")
        if self.mode != "S" and not self.mean_span_length >= 1:
            raise ValueError(f"mean_span_length={self.mean_span_length!r}: must be at least 1")

    def counts(self, length: int) -> tuple[int, int]:
        """Tokens and spans of a chunk that are noise."""
        return noise_counts(length, self.noise_density, length if self.mode == "S" else self.mean_span_length)

    def lengths(self, length: int) -> tuple[int, int]:
        """Lengths of source and target of a chunk, without end-of-sequence tokens."""
        tokens, spans = self.counts(length)
        sentinels = 0 if self.mode == "S" else spans
        return length - tokens + sentinels, tokens + sentinels

    def corrupt(self, ids: np.ndarray, rng: np.random.Generator, sentinels: np.ndarray) -> Example:
        if self.mode == "S":
            return split_at(ids, len(ids) - self.counts(len(ids))[0])
        return corrupt_spans(ids, rng, sentinels, self.noise_density, self.mean_span_length)


@dataclass(frozen=True, kw_only=True)
class _Denoising(Objective):
    """What objectives have in common whose chunks are treated by one of several denoisers: the mode is its index."""

    frames = {"encoder-decoder": PAIR, "decoder": JOINED_PAIR}

    def chosen(self, mode: int) -> Denoiser:
        raise NotImplementedError

    def __post_init__(self):
        if not len(self.tokens.sentinels):
            raise ValueError(f"tokenizer: has no sentinels <extra_id_0>, ..., which {self.name} needs")

    def raw_lengths(self, length, mode):
        return self.chosen(mode).lengths(length)

    def sentinels_of(self, length, mode):
        denoiser = self.chosen(mode)
        return 0 if denoiser.mode == "S" else denoiser.counts(length)[1]

    def corrupt(self, ids, rng, mode, word_starts) -> Example:
        return self.chosen(mode).corrupt(ids, rng, self.tokens.sentinels)


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(_Denoising):
    """T5 span corruption (https://arxiv.org/abs/1910.10683, 3.1.4; `random_spans_noise_mask`).

    Attributes:
        noise_density: share of tokens that are taken out.
        mean_span_length: mean number of tokens per span taken out.
    """

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self):
        self.chosen(0)
        super().__post_init__()

    def chosen(self, mode):
        return Denoiser("R", self.noise_density, self.mean_span_length)


# UL2, https://arxiv.org/abs/2205.05131, table 1
UL2_DENOISERS = (
    Denoiser("R", 0.15, 3),
    Denoiser("R", 0.15, 8),
    Denoiser("S", 0.25),
    Denoiser("X", 0.5, 3),
    Denoiser("X", 0.5, 8),
    Denoiser("X", 0.15, 64),
    Denoiser("X", 0.5, 64),
)


@dataclass(frozen=True, kw_only=True)
class UL2(_Denoising):
    """UL2's mixture of denoisers (https://arxiv.org/abs/2205.05131).

    Attributes:
        denoisers: the mixture; a list of lists (mode, noise density, mean span length) is understood too.
        weights: relative shares of chunks per denoiser; None: equal.
        mode_tokens: put "[R]", "[S]" or "[X]" before the source; the tokenizer must have them.
    """

    denoisers: tuple[Denoiser, ...] = UL2_DENOISERS
    weights: tuple[float, ...] | None = None
    mode_tokens: bool = False

    def __post_init__(self):
        denoisers = tuple(d if isinstance(d, Denoiser) else Denoiser(*d) for d in self.denoisers)
        object.__setattr__(self, "denoisers", denoisers)
        super().__post_init__()
        weights = [1] * self.modes if self.weights is None else self.weights
        if len(weights) != self.modes or not min(weights) >= 0 < sum(weights):
            raise ValueError(f"weights={weights!r}: must be {self.modes} numbers, at least 0, not all 0")
        if self.mode_tokens and (missing := [m for m in MODE_TOKENS if m not in self.tokens.mode_ids]):
            raise ValueError(
                f"mode_tokens=True: the tokenizer lacks {', '.join(missing)}; train it with them as extras"
            )

    @property
    def modes(self):
        return len(self.denoisers)

    def draw_mode(self, rng):
        weights = np.array(self.weights or [1] * self.modes, float)
        return int(rng.choice(self.modes, p=weights / weights.sum()))

    def chosen(self, mode):
        return self.denoisers[mode]

    def raw_lengths(self, length, mode):
        source, target = super().raw_lengths(length, mode)
        return source + self.mode_tokens, target

    def corrupt(self, ids, rng, mode, word_starts) -> Example:
        example = super().corrupt(ids, rng, mode, word_starts)
        if not self.mode_tokens:
            return example
        mode_id = self.tokens.mode_ids[f"[{self.chosen(mode).mode}]"]
        return Example(np.concatenate(([mode_id], example.source)), example.target, example.predicted)


@dataclass(frozen=True, kw_only=True)
class Bart(Objective):
    """BART (https://arxiv.org/abs/1910.13461): restore the chunk from shuffled sentences with text infilling.

    Attributes:
        mask_ratio: share of tokens that are taken out by text infilling.
        mean_span_length: lambda of the Poisson distribution of span lengths, zero included.
        permute_sentences: shuffle the sentences (or lines) first.
    """

    frames = {"encoder-decoder": PAIR}
    exact = False

    mask_ratio: float = 0.3
    mean_span_length: float = 3.0
    permute_sentences: bool = True

    def __post_init__(self):
        self.tokens.require("mask", "bart")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio!r}: must be at least 0 and below 1")
        if not self.mean_span_length > 0:
            raise ValueError(f"mean_span_length={self.mean_span_length!r}: must be above 0")

    def prepare(self, tokenizer):
        if self.permute_sentences:
            object.__setattr__(self, "sentence_ends", sentence_ends(tokenizer))

    def raw_lengths(self, length, mode):
        return length, length

    def corrupt(self, ids, rng, mode, word_starts) -> Example:
        source = permute_sentences(ids, rng, self.sentence_ends) if self.permute_sentences else ids
        source = infill(source, rng, self.tokens.ids["mask"], self.mask_ratio, self.mean_span_length)
        return Example(source, ids, np.ones(len(ids), bool))


OBJECTIVES.update(span_corruption=SpanCorruption, bart=Bart, ul2=UL2)
