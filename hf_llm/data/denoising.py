"""Denoising objectives from a corrupted source to a target: T5 span corruption, BART, UL2's mixture of denoisers.

Each is a pure function of (ids, rng, config), where `ids` is a chunk of a document, (length,) ints without special
tokens around it. End-of-sequence tokens are added by `objectives.Objective`.
"""

from dataclasses import dataclass

import numpy as np

from .language_modeling import Example
from .special_tokens import SpecialTokens


@dataclass(frozen=True)
class SpanCorruptionConfig:
    """T5 span corruption.

    Attributes:
        noise_density: share of tokens that are taken out.
        mean_span_length: mean number of tokens per span taken out.
    """

    tokens: SpecialTokens
    noise_density: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self):
        _check_denoiser(self.noise_density, self.mean_span_length)
        if not len(self.tokens.sentinels):
            raise ValueError("tokenizer: has no sentinels <extra_id_0>, ..., which span corruption needs")


def _check_denoiser(noise_density: float, mean_span_length: float) -> None:
    if not 0 < noise_density < 1:
        raise ValueError(f"noise_density={noise_density!r}: must be between 0 and 1")
    if not mean_span_length >= 1:
        raise ValueError(f"mean_span_length={mean_span_length!r}: must be at least 1")


def noise_counts(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """How many tokens and how many spans of a chunk are noise; a chunk of one token has none.

    The arithmetic of `random_spans_noise_mask` in T5's preprocessors.py.
    """
    if length < 2:
        return 0, 0
    num_tokens = min(max(round(length * noise_density), 1), length - 1)
    num_spans = max(round(num_tokens / mean_span_length), 1)
    return num_tokens, min(num_spans, length - num_tokens)


def span_lengths(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Lengths of source and target of a chunk after span corruption, without end-of-sequence tokens."""
    num_tokens, num_spans = noise_counts(length, noise_density, mean_span_length)
    return length - num_tokens + num_spans, num_tokens + num_spans


def compute_input_and_target_lengths(
    inputs_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> tuple[int, int]:
    """T5's published arithmetic (`random_spans_helper`): raw tokens that fill an input row, and their target length.

    Both rows end in an end-of-sequence token. For the published setting: 512 -> 568 raw tokens, 114 targets.
    """
    raw = inputs_length - 1
    while span_lengths(raw + 1, noise_density, mean_span_length)[0] + 1 <= inputs_length:
        raw += 1
    source, target = (n + 1 for n in span_lengths(raw, noise_density, mean_span_length))
    if noise_density == 0.5 and target > source:
        return raw - 1, target - 1
    return raw, target


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


def span_corruption(ids: np.ndarray, rng: np.random.Generator, config: SpanCorruptionConfig) -> Example:
    """T5 span corruption (https://arxiv.org/abs/1910.10683, 3.1.4; `random_spans_noise_mask`)."""
    return corrupt_spans(ids, rng, config.tokens.sentinels, config.noise_density, config.mean_span_length)


@dataclass(frozen=True)
class BartConfig:
    """BART denoising.

    Attributes:
        mask_ratio: share of tokens that are taken out by text infilling.
        mean_span_length: lambda of the Poisson distribution of span lengths, zero included.
        permute_sentences: shuffle the sentences (or lines) first.
        sentence_ends: (vocab_size,) bool, which tokens end a sentence; only read with `permute_sentences`.
    """

    tokens: SpecialTokens
    mask_ratio: float = 0.3
    mean_span_length: float = 3.0
    permute_sentences: bool = True
    sentence_ends: np.ndarray | None = None

    def __post_init__(self):
        self.tokens.require("mask", "bart")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio!r}: must be at least 0 and below 1")
        if not self.mean_span_length > 0:
            raise ValueError(f"mean_span_length={self.mean_span_length!r}: must be above 0")


def bart(ids: np.ndarray, rng: np.random.Generator, config: BartConfig) -> Example:
    """BART (https://arxiv.org/abs/1910.13461): restore the chunk from shuffled sentences with text infilling."""
    source = permute_sentences(ids, rng, config.sentence_ends) if config.permute_sentences else ids
    source = infill(source, rng, config.tokens.ids["mask"], config.mask_ratio, config.mean_span_length)
    return Example(source, ids, np.ones(len(ids), bool))


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
    """One of UL2's denoisers: its mode ("R", "S", "X"), noise density and mean span length (of S: not used)."""

    mode: str
    noise_density: float
    mean_span_length: float = 0.0


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


@dataclass(frozen=True)
class UL2Config:
    """UL2's mixture of denoisers.

    Attributes:
        denoisers: the mixture; a list of lists (mode, noise density, mean span length) is understood too.
        weights: relative shares of chunks per denoiser; None: equal.
        mode_tokens: put "[R]", "[S]" or "[X]" before the source; the tokenizer must have them.
    """

    tokens: SpecialTokens
    denoisers: tuple[Denoiser, ...] = UL2_DENOISERS
    weights: tuple[float, ...] | None = None
    mode_tokens: bool = False

    def __post_init__(self):
        denoisers = tuple(d if isinstance(d, Denoiser) else Denoiser(*d) for d in self.denoisers)
        object.__setattr__(self, "denoisers", denoisers)
        for d in denoisers:
            if d.mode not in ("R", "S", "X"):
                raise ValueError(f"denoisers: mode={d.mode!r} must be one of R, S, X")
            _check_denoiser(d.noise_density, 1 if d.mode == "S" else d.mean_span_length)
        if self.weights is not None and (
            len(self.weights) != len(denoisers) or not min(self.weights) >= 0 < sum(self.weights)
        ):
            raise ValueError(f"weights={self.weights!r}: must be {len(denoisers)} numbers, at least 0, not all 0")
        if not len(self.tokens.sentinels):
            raise ValueError("tokenizer: has no sentinels <extra_id_0>, ..., which ul2 needs")
        if self.mode_tokens and (missing := [m for m in ("[R]", "[S]", "[X]") if m not in self.tokens.mode_ids]):
            raise ValueError(
                f"mode_tokens=True: the tokenizer lacks {', '.join(missing)}; train it with them as extras"
            )


def draw_denoiser(rng: np.random.Generator, config: UL2Config) -> int:
    """Index of a denoiser, drawn by the weights."""
    weights = np.ones(len(config.denoisers)) if config.weights is None else np.array(config.weights, float)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def ul2_lengths(length: int, config: UL2Config, denoiser: int) -> tuple[int, int]:
    """Lengths of source and target of a chunk, without end-of-sequence tokens."""
    d = config.denoisers[denoiser]
    if d.mode == "S":
        suffix = noise_counts(length, d.noise_density, length)[0]
        source, target = length - suffix, suffix
    else:
        source, target = span_lengths(length, d.noise_density, d.mean_span_length)
    return source + config.mode_tokens, target


def ul2(ids: np.ndarray, rng: np.random.Generator, config: UL2Config, denoiser: int) -> Example:
    """One of UL2's denoisers: span corruption, or (S) predicting the end of the chunk from its beginning."""
    d = config.denoisers[denoiser]
    if d.mode == "S":
        predicted = np.arange(len(ids)) >= len(ids) - noise_counts(len(ids), d.noise_density, len(ids))[0]
        example = Example(ids[~predicted], ids[predicted], predicted)
    else:
        example = corrupt_spans(ids, rng, config.tokens.sentinels, d.noise_density, d.mean_span_length)
    if not config.mode_tokens:
        return example
    mode_id = config.tokens.mode_ids[f"[{d.mode}]"]
    return Example(np.concatenate(([mode_id], example.source)), example.target, example.predicted)
