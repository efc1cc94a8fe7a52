"""Perplexity and bits per byte of texts, each token scored once and never with another text in sight.

A text longer than a window is read in overlapping windows, `stride` tokens apart; a token is scored in the first
window that gives it enough context. Causal models predict a token from what is before it, with at least
`window - stride` tokens of context once the text is that long. Masked models get pseudo-log-likelihoods
(https://arxiv.org/abs/1910.14659): each token is masked in turn and predicted from both sides. Encoder-decoders
predict a target from its source.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hf_llm.data.encoding import encode_texts

from .opening import Opened


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` of a text are read, of which `first` to `last` are scored."""

    text: int
    begin: int
    end: int
    first: int
    last: int


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of a text's tokens.

    Attributes:
        logprobs: (tokens,) float64, nats; NaN where a token has nothing before it and cannot be predicted.
        token_bytes: (tokens,) UTF-8 bytes that each token stands for.
    """

    logprobs: np.ndarray
    token_bytes: np.ndarray

    def sums(self) -> dict[str, float]:
        """`nats`, `tokens` and `bytes` of what could be scored, and `unscored_tokens`."""
        counted = ~np.isnan(self.logprobs)
        return {
            "nats": -float(self.logprobs[counted].sum()),
            "tokens": int(counted.sum()),
            "bytes": int(self.token_bytes[counted].sum()),
            "unscored_tokens": int((~counted).sum()),
        }


def windows(length: int, window: int, stride: int, ahead: int = 0, text: int = 0) -> Iterator[Window]:
    """
    Windows over one text; every token is scored in exactly one.

    Args:
        length: tokens of the text.
        window: tokens of a window.
        stride: from one window to the next.
        ahead: tokens at a window's end that the next one scores, since more follows them there.
    """
    first = begin = 0
    while first < length:
        end = min(begin + window, length)
        last = end if end == length else end - ahead
        yield Window(text, begin, end, first, last)
        first, begin = last, begin + stride


def score_texts(
    opened: Opened, texts: list[str], window: int | None = None, stride: int | None = None, batch_size: int = 8
) -> list[Scored]:
    """
    Score texts with a causal or masked model.

    Args:
        texts: documents; never seen together.
        window: tokens that the model reads at once, without special tokens; default: what it was made for.
        stride: default: half a window.
        batch_size: windows in a forward pass.

    Raises:
        ValueError: a bad window or stride, or an encoder-decoder.
    """
    if opened.stack == "encoder-decoder":
        raise ValueError("an encoder-decoder scores targets given their sources: use the task conditional-perplexity")
    ids, token_bytes = zip(*encode_texts(opened.tokenizer, texts), strict=True)
    room = opened.limit - len(opened.before) - (len(opened.after) if opened.stack == "encoder" else 0)
    window = room if window is None else window
    stride = max(window // 2, 1) if stride is None else stride
    limit = room if opened.ends else max(room, window)
    if not 2 <= window <= limit:
        raise ValueError(f"window = {window}: must be between 2 and {limit}, what the model reads at once")
    if not 1 <= stride < window:
        raise ValueError(f"stride = {stride}: must be between 1 and window - 1 = {window - 1}")
    score = _score_masked if opened.stack == "encoder" else _score_causal
    logprobs = score(opened, ids, window, stride, batch_size)
    return [Scored(*pair) for pair in zip(logprobs, token_bytes, strict=True)]


@torch.no_grad()
def _score_causal(opened: Opened, ids: Iterable[np.ndarray], window: int, stride: int, batch_size: int):
    scores = [np.full(len(text), np.nan) for text in ids]
    tasks = [w for i, text in enumerate(ids) for w in windows(len(text), window, stride, text=i)]
    tasks.sort(key=lambda w: w.begin - w.end)
    for batch in _batches(tasks, batch_size):
        heads = [opened.before if w.begin == 0 else [] for w in batch]
        rows = [[*head, *ids[w.text][w.begin : w.end].tolist()] for head, w in zip(heads, batch, strict=True)]
        logits = opened.model(**_padded(rows, opened)).logits
        for row, head, w, out in zip(rows, heads, batch, logits, strict=True):
            shift = len(head) - w.begin  # from a place in the text to one in the row
            first = max(w.first, 1 - shift)  # the row's first token has nothing before it
            targets = torch.tensor(row[first + shift : w.last + shift], dtype=torch.long, device=out.device)
            nats = F.cross_entropy(out[first + shift - 1 : w.last + shift - 1].float(), targets, reduction="none")
            scores[w.text][first : w.last] = -nats.double().cpu().numpy()
    return scores


def _score_masked(opened: Opened, ids: Iterable[np.ndarray], window: int, stride: int, batch_size: int):
    scores = [np.full(len(text), np.nan) for text in ids]
    ahead = (window - stride) // 2
    tasks = [
        (w, place)
        for i, text in enumerate(ids)
        for w in windows(len(text), window, stride, ahead, text=i)
        for place in range(w.first, w.last)
    ]
    rows = [(ids[w.text][w.begin : w.end].tolist(), place - w.begin) for w, place in tasks]
    for (w, place), value in zip(tasks, masked_logprobs(opened, rows, batch_size), strict=True):
        scores[w.text][place] = value
    return scores


@torch.no_grad()
def masked_logprobs(opened: Opened, rows: list[tuple[list[int], int]], batch_size: int = 8) -> np.ndarray:
    """
    Log-probability of one token of each row, masked, from both sides.

    Args:
        rows: token ids without special tokens, and the place of the token.

    Returns:
        (rows,) float64, nats
    """
    mask, before, after = opened.tokenizer.mask_token_id, opened.before, opened.after
    results = np.empty(len(rows))
    for batch in _batches(sorted(range(len(rows)), key=lambda i: -len(rows[i][0])), batch_size):
        ids = [[*before, *rows[i][0], *after] for i in batch]
        places = [rows[i][1] + len(before) for i in batch]
        targets = torch.tensor([row[place] for row, place in zip(ids, places, strict=True)])
        for row, place in zip(ids, places, strict=True):
            row[place] = mask
        logits = opened.model(**_padded(ids, opened)).logits
        chosen = logits[torch.arange(len(ids)), torch.tensor(places)].float()
        results[batch] = -F.cross_entropy(chosen, targets.to(chosen.device), reduction="none").double().cpu().numpy()
    return results


@torch.no_grad()
def score_pairs(opened: Opened, sources: list[str], targets: list[str], batch_size: int = 8) -> list[Scored]:
    """
    Score targets given their sources with an encoder-decoder; special tokens around a target count, with no bytes.

    Raises:
        ValueError: not an encoder-decoder, or a pair is longer than its position tables.
    """
    if opened.stack != "encoder-decoder":
        raise ValueError(f"pairs are scored by an encoder-decoder, not by a {opened.stack}")
    before, after = opened.before, opened.after
    encoded = [encode_texts(opened.tokenizer, texts) for texts in (sources, targets)]
    read = [[*before, *ids.tolist(), *after] for ids, _ in encoded[0]]
    written = [[*before, *ids.tolist(), *after] for ids, _ in encoded[1]]
    longest = max(map(len, read + written))
    if opened.ends and longest > opened.limit:
        raise ValueError(f"a text of {longest} tokens is longer than the model's {opened.limit}")
    results: list[Scored | None] = [None] * len(read)
    order = sorted(range(len(read)), key=lambda i: -len(read[i]) - len(written[i]))
    for batch in _batches(order, batch_size):
        inputs = _padded([read[i] for i in batch], opened)
        labels = _padded([written[i] for i in batch], opened)
        labels = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        shifted = opened.model.prepare_decoder_input_ids_from_labels(labels)
        logits = opened.model(**inputs, decoder_input_ids=shifted).logits.float()
        nats = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").double().cpu().numpy()
        for i, row in zip(batch, nats, strict=True):
            token_bytes = np.pad(encoded[1][i][1], (len(before), len(after)))
            results[i] = Scored(-row[: len(written[i])], token_bytes)
    return results


def _batches(items: list, size: int) -> Iterator[list]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _padded(rows: list[list[int]], opened: Opened) -> dict[str, torch.Tensor]:
    """Rows as (batch, longest) int64, padded on the right."""
    pad, longest = opened.tokenizer.pad_token_id or 0, max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids.to(opened.model.device), "attention_mask": mask.to(opened.model.device)}


def figures(sums: Iterable[dict[str, float]]) -> dict[str, float]:
    """
    `loss` in nats per token, `perplexity` per token, `bits_per_byte`, and what was counted.

    Args:
        sums: of each text, as `Scored.sums` gives them.

    Raises:
        ValueError: nothing could be scored.
    """
    sums = list(sums)
    total = {name: sum(s[name] for s in sums) for name in ("nats", "tokens", "bytes", "unscored_tokens")}
    if not total["tokens"]:
        raise ValueError("data: no token could be scored; the texts are empty or of one token each")
    nats = total.pop("nats")
    loss = nats / total["tokens"]
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(total["bytes"], 1),
        "texts": len(sums),
        **total,
    }
