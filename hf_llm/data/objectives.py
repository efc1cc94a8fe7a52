"""Objectives by name: what packing and sampling ask of one, and the table of them.

`make_objective("span_corruption", tokenizer, stack="encoder-decoder", noise_density=0.15)` looks the name up in
`OBJECTIVES`, fills its config and returns an `Objective`. The functions themselves are in `language_modeling.py` and
`denoising.py`.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from . import denoising, language_modeling
from .language_modeling import IGNORE, Example
from .special_tokens import SpecialTokens, sentence_ends


STACKS = ("decoder", "encoder", "encoder-decoder")


@dataclass(frozen=True)
class Frame:
    """Special tokens by role: around each document before it is cut, and around each chunk's source and target."""

    document_start: tuple[str, ...] = ()
    document_end: tuple[str, ...] = ()
    source_start: tuple[str, ...] = ()
    source_end: tuple[str, ...] = ()
    target_end: tuple[str, ...] = ()


DOCUMENT = Frame(document_start=("bos",), document_end=("eos",))
CHUNK = Frame(source_start=("cls",), source_end=("sep",))
PAIR = Frame(source_end=("eos",), target_end=("eos",))
JOINED_PAIR = Frame(source_start=("bos",), source_end=("eos",), target_end=("eos",))
PROMPT = Frame(source_start=("bos",), target_end=("eos",))


def _in_place_length(length, config, mode):
    return length, 0


def _prefix_lengths(length, config, mode):
    smallest, largest = config.bounds(length)
    return largest, length - smallest


def _span_lengths(length, config, mode):
    return denoising.span_lengths(length, config.noise_density, config.mean_span_length)


def _same_lengths(length, config, mode):
    return length, length


def _pair_lengths(length, config, mode):
    return mode, length - mode


def _span_sentinels(length, config, mode):
    return denoising.noise_counts(length, config.noise_density, config.mean_span_length)[1]


def _ul2_sentinels(length, config, mode):
    d = config.denoisers[mode]
    return 0 if d.mode == "S" else denoising.noise_counts(length, d.noise_density, d.mean_span_length)[1]


@dataclass(frozen=True)
class Kind:
    """An entry of `OBJECTIVES`.

    Attributes:
        function: (ids, rng, config) -> `Example`; with `has_mode`, (ids, rng, config, mode); with `whole_word` in the
            config, (ids, rng, config, word starts).
        config: its config class.
        frames: stack -> special tokens; its keys are the stacks that the objective can train.
        lengths: (chunk length, config, mode) -> largest source and target length, special tokens of the frame apart.
        sentinels: (chunk length, config, mode) -> sentinels used.
        exact: whether these lengths are exact, not only upper bounds of what the draws can give.
        has_mode: whether the function wants the chunk's mode, an int fixed when the chunk is packed.
        draw_mode: (rng, config) -> mode; None where the mode is a property of the data, or 0.
        derived: option -> (config field, function of the tokenizer) that is filled in when the option is true.
    """

    function: Callable[..., Example]
    config: type
    frames: Mapping[str, Frame]
    lengths: Callable[..., tuple[int, int]]
    sentinels: Callable[..., int] = lambda length, config, mode: 0
    exact: bool = True
    has_mode: bool = False
    draw_mode: Callable[..., int] | None = None
    derived: Mapping[str, tuple[str, Callable]] = field(default_factory=dict)


OBJECTIVES = {
    "causal": Kind(language_modeling.causal, language_modeling.CausalConfig, {"decoder": DOCUMENT}, _in_place_length),
    "masked_lm": Kind(
        language_modeling.masked_lm, language_modeling.MaskedConfig, {"encoder": CHUNK}, _in_place_length
    ),
    "prefix_lm": Kind(
        language_modeling.prefix_lm,
        language_modeling.PrefixConfig,
        {"decoder": DOCUMENT, "encoder-decoder": PAIR},
        _prefix_lengths,
        exact=False,
    ),
    "span_corruption": Kind(
        denoising.span_corruption,
        denoising.SpanCorruptionConfig,
        {"encoder-decoder": PAIR, "decoder": JOINED_PAIR},
        _span_lengths,
        sentinels=_span_sentinels,
    ),
    "bart": Kind(
        denoising.bart,
        denoising.BartConfig,
        {"encoder-decoder": PAIR},
        _same_lengths,
        exact=False,
        derived={"permute_sentences": ("sentence_ends", sentence_ends)},
    ),
    "ul2": Kind(
        denoising.ul2,
        denoising.UL2Config,
        {"encoder-decoder": PAIR, "decoder": JOINED_PAIR},
        denoising.ul2_lengths,
        sentinels=_ul2_sentinels,
        has_mode=True,
        draw_mode=denoising.draw_denoiser,
    ),
    "supervised": Kind(
        language_modeling.supervised,
        language_modeling.SupervisedConfig,
        {"encoder-decoder": PAIR, "decoder": PROMPT},
        _pair_lengths,
        has_mode=True,
    ),
}
IN_PLACE = ("causal", "masked_lm")  # source and target are aligned; the others go from a source to a target


@dataclass(frozen=True)
class Objective:
    """A configured objective on a stack.

    Attributes:
        name: key of `OBJECTIVES`.
        stack: "decoder", "encoder" or "encoder-decoder".
        config: the objective's config dataclass.
        decoder_start_token_id: first decoder input of each document (encoder-decoder only).
        options: what the user asked for, for fingerprints and model cards.
    """

    name: str
    stack: str
    config: object
    decoder_start_token_id: int | None
    options: dict

    @property
    def kind(self) -> Kind:
        return OBJECTIVES[self.name]

    @property
    def tokens(self) -> SpecialTokens:
        return self.config.tokens

    @property
    def exact_lengths(self) -> bool:
        """Whether `lengths` is exact; on a decoder it is, for the two halves are joined."""
        return self.kind.exact or self.stack == "decoder"

    @property
    def whole_words(self) -> bool:
        """Whether the objective chooses words, and is called with where they begin."""
        return getattr(self.config, "whole_word", False)

    @property
    def pad_token_id(self) -> int:
        return self.tokens.ids["pad"]

    @cached_property
    def frame_ids(self) -> dict[str, np.ndarray]:
        """Special ids per field of `Frame`; roles that the tokenizer lacks are left out."""
        frame, ids = self.kind.frames[self.stack], self.tokens.ids
        return {
            f.name: np.array([ids[r] for r in getattr(frame, f.name) if r in ids], np.int64) for f in fields(frame)
        }

    def __call__(
        self, ids: np.ndarray, rng: np.random.Generator, mode: int = 0, word_starts: np.ndarray | None = None
    ) -> Example:
        """The example of one chunk, framed. On a decoder, source and target are joined; the target is predicted."""
        further = [mode] if self.kind.has_mode else [word_starts] if self.whole_words else []
        example = self.kind.function(ids, rng, self.config, *further)
        start, end = self.frame_ids["source_start"], self.frame_ids["source_end"]
        source = np.concatenate((start, example.source, end))
        if self.name in IN_PLACE:
            target = np.concatenate((np.full(len(start), IGNORE), example.target, np.full(len(end), IGNORE)))
            return Example(source, target, example.predicted)
        target = np.concatenate((example.target, self.frame_ids["target_end"]))
        if self.stack == "decoder":
            unseen = np.full(len(source), IGNORE)
            return Example(np.concatenate((source, target)), np.concatenate((unseen, target)), example.predicted)
        return Example(source, target, example.predicted)

    def lengths(self, chunk_length: int, mode: int = 0) -> tuple[int, ...]:
        """Room that a chunk takes in a row: (length,), or of an encoder-decoder (source length, target length).

        Exact, or where `exact_lengths` is false the most that it can take.
        """
        around = len(self.frame_ids["source_start"]) + len(self.frame_ids["source_end"])
        if self.stack == "decoder" and self.name == "prefix_lm":
            return (chunk_length,)  # where it is cut makes no difference to the sum
        source, target = self.kind.lengths(chunk_length, self.config, mode)
        if self.name in IN_PLACE:
            return (source + around,)
        end = len(self.frame_ids["target_end"])
        if self.stack == "decoder":
            return (source + around + target + end,)
        return source + around, target + end

    def fits(self, chunk_length: int, capacity: tuple[int, ...], mode: int = 0) -> bool:
        """Whether a chunk fits an empty row, and has enough sentinels."""
        rooms = zip(self.lengths(chunk_length, mode), capacity, strict=True)
        enough = self.kind.sentinels(chunk_length, self.config, mode) <= len(self.tokens.sentinels)
        return enough and all(length <= limit for length, limit in rooms)

    def longest_chunk(self, capacity: tuple[int, ...], mode: int = 0) -> int:
        """Tokens of the longest chunk that fits an empty row (lengths grow with the chunk: bisection)."""
        low, high = 0, sum(capacity) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle, capacity, mode) else (low, middle)
        return low

    def draw_mode(self, rng: np.random.Generator) -> int:
        """The mode of a chunk, drawn when it is packed because its lengths depend on it."""
        return self.kind.draw_mode(rng, self.config) if self.kind.draw_mode else 0

    def capacity(self, row_length: int, target_row_length: int | None) -> tuple[int, ...]:
        """Checked sizes of a row, one per half.

        `target_row_length=None` stands for what a full source row needs at most, and at most `row_length`: 114 for
        span corruption at 512.

        Raises:
            ValueError: rows too short to hold anything, or a target row on a stack that has none.
        """
        if row_length < 8:
            raise ValueError(f"row_length={row_length}: must be at least 8")
        if self.stack != "encoder-decoder":
            if target_row_length is not None:
                raise ValueError(f"target_row_length={target_row_length}: only for stack='encoder-decoder'")
            return (row_length,)
        if target_row_length is None:
            modes = range(len(self.config.denoisers)) if self.name == "ul2" else (0,)
            rows = (row_length, row_length)
            needed = [self.lengths(self.longest_chunk(rows, m), m)[1] for m in modes]
            target_row_length = row_length if self.name == "supervised" else max(needed)
        if target_row_length < 4:
            raise ValueError(f"target_row_length={target_row_length}: must be at least 4")
        return row_length, target_row_length


def make_objective(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    stack: str,
    *,
    decoder_start_token_id: int | None = None,
    **options,
) -> Objective:
    """Configures an objective for a tokenizer and a stack.

    Args:
        name: a key of `OBJECTIVES`.
        stack: "decoder", "encoder" or "encoder-decoder".
        decoder_start_token_id: default: the padding token (T5's convention).
        options: fields of the objective's config, e.g. `mask_probability=0.3` of "masked_lm".

    Raises:
        ValueError: unknown name, stack or option; a stack that the objective cannot train; a value out of range; a
            special token that the objective needs and the tokenizer lacks.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r}: must be one of {', '.join(OBJECTIVES)}")
    if stack not in STACKS:
        raise ValueError(f"stack={stack!r}: must be one of {', '.join(STACKS)}")
    kind = OBJECTIVES[name]
    if stack not in kind.frames:
        trainable = [n for n, k in OBJECTIVES.items() if stack in k.frames]
        raise ValueError(f"objective={name!r}: cannot train stack={stack!r}; legal there are {', '.join(trainable)}")
    hidden = {"tokens", *(target for target, _ in kind.derived.values())}
    legal = [f.name for f in fields(kind.config) if f.name not in hidden]
    for option in options:
        if option not in legal:
            near = difflib.get_close_matches(option, legal, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"objective {name!r}: unknown option {option!r}{hint}; legal are {', '.join(legal) or 'none'}"
            )
    tokens = SpecialTokens.from_tokenizer(tokenizer)
    tokens.require("pad", "padding a row")
    for role in {"eos"} & {r for f in fields(Frame) for r in getattr(kind.frames[stack], f.name)}:
        tokens.require(role, f"objective {name!r}")
    config = kind.config(tokens, **options)
    derived = {target: f(tokenizer) for option, (target, f) in kind.derived.items() if getattr(config, option)}
    if derived:
        config = kind.config(tokens, **options, **derived)
    if stack != "encoder-decoder":
        if decoder_start_token_id is not None:
            raise ValueError(f"decoder_start_token_id={decoder_start_token_id}: only for stack='encoder-decoder'")
    elif decoder_start_token_id is None:
        decoder_start_token_id = tokens.ids["pad"]
    return Objective(name, stack, config, decoder_start_token_id, dict(options))
