"""Objectives: what one is to packing and sampling, and the table of them.

`make_objective("span_corruption", tokenizer, stack="encoder-decoder", noise_density=0.15)` looks the name up in
`OBJECTIVES` and fills in its options. The rows are in `language_modeling.py` and `denoising.py`; a further one is a
subclass of `Objective` (a frozen dataclass whose fields are its options), entered into the table:

    @dataclass(frozen=True, kw_only=True)
    class Reversed(Objective):
        frames = {"decoder": DOCUMENT}
        in_place = True

        def corrupt(self, ids, rng, mode, word_starts):
            return Example(ids[::-1], np.where(np.arange(len(ids)) > 0, ids[::-1], IGNORE), np.arange(len(ids)) > 0)

    OBJECTIVES["reversed"] = Reversed
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from .special_tokens import SpecialTokens


IGNORE = -100
STACKS = ("decoder", "encoder", "encoder-decoder")


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


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective for a tokenizer and a stack. Fields that a subclass adds are its options.

    Attributes:
        frames: stack -> special tokens; its keys are the stacks that the objective can train.
        in_place: whether source and target are aligned; else the target follows from the source.
        exact: whether `raw_lengths` is exact, not only an upper bound of what the draws can give.
        modes: how many ways there are to treat a chunk; which one is drawn when it is packed, since lengths differ.
        pairs: whether a document is a pair, columns `source` and `target`; the mode is then the source's length.
        name: key of `OBJECTIVES`.
        stack: "decoder", "encoder" or "encoder-decoder".
        tokens: special ids of the tokenizer.
        decoder_start_token_id: first decoder input of each document (encoder-decoder only).
        options: what the user asked for, for fingerprints and model cards.
    """

    frames: ClassVar[Mapping[str, Frame]] = {}
    in_place: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    pairs: ClassVar[bool] = False

    name: str
    stack: str
    tokens: SpecialTokens
    decoder_start_token_id: int | None = None
    options: dict

    # ---- what a row of the table says ------------------------------------------------------------------------------

    def corrupt(self, ids: np.ndarray, rng: np.random.Generator, mode: int, word_starts: np.ndarray | None) -> Example:
        """The example of a chunk of a document, (length,) ints without the frame, which are left as they are.

        Args:
            mode: of this chunk; see `modes` and `pairs`.
            word_starts: (length,) bool, which tokens begin a word; only with `whole_words`.
        """
        raise NotImplementedError

    def raw_lengths(self, length: int, mode: int) -> tuple[int, int]:
        """Largest source and target of a chunk, special tokens of the frame apart; in place the target counts 0."""
        return length, 0

    def sentinels_of(self, length: int, mode: int) -> int:
        """How many sentinels the example of a chunk has."""
        return 0

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Called once with the tokenizer, to derive from it whatever `tokens` does not hold."""

    @property
    def modes(self) -> int:
        return 1

    def draw_mode(self, rng: np.random.Generator) -> int:
        """The mode of a chunk, in [0, modes)."""
        return 0

    @property
    def whole_words(self) -> bool:
        """Whether words are chosen, so that `corrupt` needs to know where they begin."""
        return False

    # ---- what packing and sampling ask -----------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """Columns of the corpus."""
        return ["source", "target"] if self.pairs else ["text"]

    @property
    def exact_lengths(self) -> bool:
        """Whether `lengths` is exact; on a decoder it is, for the two halves are joined."""
        return self.exact or self.stack == "decoder"

    @cached_property
    def frame_ids(self) -> dict[str, np.ndarray]:
        """Special ids per field of `Frame`; roles that the tokenizer lacks are left out."""
        frame, ids = self.frames[self.stack], self.tokens.ids
        return {
            f.name: np.array([ids[r] for r in getattr(frame, f.name) if r in ids], np.int64) for f in fields(frame)
        }

    def __call__(
        self, ids: np.ndarray, rng: np.random.Generator, mode: int = 0, word_starts: np.ndarray | None = None
    ) -> Example:
        """The example of one chunk, framed. On a decoder, source and target are joined; the target is predicted."""
        example = self.corrupt(ids, rng, mode, word_starts)
        start, end = self.frame_ids["source_start"], self.frame_ids["source_end"]
        source = np.concatenate((start, example.source, end))
        if self.in_place:
            target = np.concatenate((np.full(len(start), IGNORE), example.target, np.full(len(end), IGNORE)))
            return Example(source, target, example.predicted)
        target = np.concatenate((example.target, self.frame_ids["target_end"]))
        if self.stack == "decoder":
            target = np.concatenate((np.full(len(source), IGNORE), target))
            source = np.concatenate((source, target[len(source) :]))
        return Example(source, target, example.predicted)

    def lengths(self, chunk_length: int, mode: int = 0) -> tuple[int, ...]:
        """Room that a chunk takes in a row: (length,), or of an encoder-decoder (source length, target length).

        Exact, or where `exact_lengths` is false the most that it can take.
        """
        source, target = self.raw_lengths(chunk_length, mode)
        source += len(self.frame_ids["source_start"]) + len(self.frame_ids["source_end"])
        target += len(self.frame_ids["target_end"])
        return (source, target) if self.stack == "encoder-decoder" else (source + target,)

    def fits(self, chunk_length: int, capacity: tuple[int, ...], mode: int = 0) -> bool:
        """Whether a chunk fits an empty row, and has enough sentinels."""
        rooms = zip(self.lengths(chunk_length, mode), capacity, strict=True)
        enough = self.sentinels_of(chunk_length, mode) <= len(self.tokens.sentinels)
        return enough and all(length <= limit for length, limit in rooms)

    def longest_chunk(self, capacity: tuple[int, ...], mode: int = 0) -> int:
        """Tokens of the longest chunk that fits an empty row (lengths grow with the chunk: bisection)."""
        low, high = 0, sum(capacity) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle, capacity, mode) else (low, middle)
        return low

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
        if target_row_length is None and self.pairs:
            target_row_length = row_length
        elif target_row_length is None:
            rows = (row_length, row_length)
            target_row_length = max(self.lengths(self.longest_chunk(rows, m), m)[1] for m in range(self.modes))
        if target_row_length < 4:
            raise ValueError(f"target_row_length={target_row_length}: must be at least 4")
        return row_length, target_row_length


OBJECTIVES: dict[str, type[Objective]] = {}


def check_objective(name: str, stack: str, options: Iterable[str] = ()) -> None:
    """Raise ValueError on an unknown name, stack or option, or a stack that the objective cannot train."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r}: must be one of {', '.join(OBJECTIVES)}")
    if stack not in STACKS:
        raise ValueError(f"stack={stack!r}: must be one of {', '.join(STACKS)}")
    kind = OBJECTIVES[name]
    if stack not in kind.frames:
        trainable = [n for n, k in OBJECTIVES.items() if stack in k.frames]
        raise ValueError(f"objective={name!r}: cannot train stack={stack!r}; legal there are {', '.join(trainable)}")
    legal = [f.name for f in fields(kind) if f.name not in {base.name for base in fields(Objective)}]
    if unknown := next((option for option in options if option not in legal), None):
        near = difflib.get_close_matches(unknown, legal, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"objective {name!r}: unknown option {unknown!r}{hint}; legal are {', '.join(legal) or 'none'}"
        )


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
        options: fields that the objective's class adds, e.g. `mask_probability=0.3` of "masked_lm".

    Raises:
        ValueError: unknown name, stack or option; a stack that the objective cannot train; a value out of range; a
            special token that the objective needs and the tokenizer lacks.
    """
    check_objective(name, stack, options)
    kind = OBJECTIVES[name]
    tokens = SpecialTokens.from_tokenizer(tokenizer)
    tokens.require("pad", "padding a row")
    if any("eos" in getattr(kind.frames[stack], f.name) for f in fields(Frame)):
        tokens.require("eos", f"objective {name!r}")
    if stack != "encoder-decoder" and decoder_start_token_id is not None:
        raise ValueError(f"decoder_start_token_id={decoder_start_token_id}: only for stack='encoder-decoder'")
    if stack == "encoder-decoder" and decoder_start_token_id is None:
        decoder_start_token_id = tokens.ids["pad"]
    objective = kind(
        name=name,
        stack=stack,
        tokens=tokens,
        decoder_start_token_id=decoder_start_token_id,
        options=dict(options),
        **options,
    )
    objective.prepare(tokenizer)
    return objective
