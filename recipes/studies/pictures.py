"""Pictures of what goes on inside a model, and one page that holds them all."""

import base64
import html
import io
from pathlib import Path

import numpy as np
import torch

from .interpretation import Attributions, Example


_LABELS = 48  # tokens up to which axes are labelled
_PANELS = 64  # attention maps up to which each has axes of its own


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _label(axes, tokens: list[str], which: str, rotation: float = 0) -> None:
    if len(tokens) <= _LABELS:
        setter = axes.set_xticks if which == "x" else axes.set_yticks
        setter(range(len(tokens)), [_plain(token) for token in tokens], rotation=rotation, fontsize=7)


def _plain(token: str) -> str:
    """Without what matplotlib reads as mathematics."""
    return token.replace("$", r"\$")


def draw_attention(maps: np.ndarray, rows: list[str], columns: list[str], title: str):
    """
    A panel for each head, a row of them for each layer; of large models all in one, without tokens.

    Args:
        maps: (layers, heads, from, to).
        rows, columns: tokens that attend, and that are attended to.
    """
    from matplotlib.figure import Figure

    layers, heads = maps.shape[:2]
    if layers * heads > _PANELS:
        return _draw_mosaic(maps, title)
    side = min(max(1.6, 0.14 * max(len(rows), len(columns))), 14 / heads)
    width, height = heads * side + 2.0, layers * side + 1.6
    figure = Figure(figsize=(width, height), dpi=130)
    margins = {"left": 1 / width, "right": 1 - 1 / width, "bottom": 1 / height, "top": 1 - 0.6 / height}
    panels = figure.subplots(
        layers, heads, squeeze=False, sharex=True, sharey=True, gridspec_kw={**margins, "wspace": 0.06, "hspace": 0.06}
    )
    for layer, head in np.ndindex(layers, heads):
        axes = panels[layer, head]
        image = axes.imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.tick_params(length=0)
        if layer == 0:
            axes.set_title(f"head {head}", fontsize=8)
        if head == 0:
            axes.set_ylabel(f"layer {layer}", fontsize=8)
            _label(axes, rows, "y")
        if layer == layers - 1:
            _label(axes, columns, "x", rotation=90)
    bar = figure.add_axes((1 - 0.85 / width, margins["bottom"], 0.15 / width, margins["top"] - margins["bottom"]))
    figure.colorbar(image, cax=bar, label="weight")
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_mosaic(maps: np.ndarray, title: str):
    layers, heads, height, width = maps.shape
    gap = max(1, width // 16)
    tiles = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    mosaic = tiles.transpose(0, 2, 1, 3).reshape(layers * (height + gap), heads * (width + gap))
    figure = _figure(0.7 * heads + 1.5, 0.7 * layers + 1)
    axes = figure.add_subplot()
    image = axes.imshow(mosaic, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks((np.arange(heads) + 0.5) * (width + gap), [f"head {i}" for i in range(heads)], fontsize=7)
    axes.set_yticks((np.arange(layers) + 0.5) * (height + gap), [f"layer {i}" for i in range(layers)], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.5, label="weight")
    axes.set_title(title, fontsize=10)
    return figure


def draw_logit_lens(logits: torch.Tensor, tokens: list[str], decode):
    """
    The likeliest token after each layer, shaded by its probability.

    Args:
        logits: (layers + 1, seq, vocabulary).
        tokens: that have logits.
        decode: id -> text.
    """
    probability, best = (x.numpy() for x in logits.softmax(-1).max(-1))
    rows, columns = best.shape
    figure = _figure(max(6.0, 0.62 * columns + 1.8), 0.42 * rows + 1.6)
    axes = figure.add_subplot()
    image = axes.imshow(probability, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(rows, columns):
        colour = "white" if probability[row, column] > 0.55 else "black"
        text = _plain(decode(int(best[row, column]))[:8])
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(rows), ["embeddings", *(f"layer {i}" for i in range(rows - 1))], fontsize=7)
    axes.set_xticks(range(columns), [_plain(token) for token in tokens], rotation=60, fontsize=7, ha="right")
    axes.set_xlabel("token that is read")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="probability", pad=0.01)
    axes.set_title("Logit lens: the likeliest prediction after each layer", fontsize=10)
    return figure


def draw_attributions(attributions: Attributions, tokens: list[str], predicted: str):
    """A bar for each token that was read."""
    figure = _figure(max(6.0, 0.32 * len(tokens) + 1.5), 3.2)
    axes = figure.add_subplot()
    colours = np.where(attributions.scores >= 0, "#2171b5", "#cb181d")
    axes.bar(range(len(tokens)), attributions.scores, color=colours)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(tokens)), [_plain(token) for token in tokens], rotation=60, fontsize=8, ha="right")
    axes.set_ylabel("attribution (nats)")
    axes.set_title(
        f"What speaks for {_plain(predicted)!r} (probability {np.exp(attributions.log_probability):.3f}): "
        "integrated gradients",
        fontsize=10,
    )
    axes.spines[["right", "top"]].set_visible(False)
    return figure


def page(title: str, example: Example, attributions: Attributions, predicted: str, figures: dict) -> str:
    """
    One self-contained HTML page.

    Args:
        figures: heading -> (explanation, PNG file).
    """
    largest = float(np.abs(attributions.scores).max()) or 1.0
    spans = []
    for token, score in zip(example.read, attributions.scores, strict=True):
        red, green, blue = (33, 113, 181) if score >= 0 else (203, 24, 29)
        shade = f"rgba({red},{green},{blue},{abs(score) / largest * 0.8:.2f})"
        spans.append(f'<span title="{score:+.4f} nats" style="background:{shade}">{html.escape(token)}</span>')
    blocks = [image(heading, picture, f"<p>{html.escape(text)}</p>") for heading, (text, picture) in figures.items()]
    gained = attributions.log_probability - attributions.baseline_log_probability
    return _PAGE.format(
        title=html.escape(title),
        tokens="".join(spans),
        predicted=html.escape(predicted),
        probability=np.exp(attributions.log_probability),
        total=attributions.scores.sum(),
        gained=gained,
        blocks="\n".join(blocks),
    )


def image(heading: str, picture: bytes, text: str = "") -> str:
    """HTML of a PNG file below its heading and `text`, which is HTML already."""
    name, data = html.escape(heading), base64.b64encode(picture).decode()
    return f'<h2>{name}</h2>{text}<img alt="{name}" src="data:image/png;base64,{data}">'


def png(figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write(folder: Path, text: str, figures: dict) -> None:
    """The page as `index.html`, and each figure as a PNG beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(text, encoding="utf-8")
    for heading, (_, picture) in figures.items():
        (folder / f"{heading.lower().replace(' ', '_')}.png").write_bytes(picture)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }}
img {{ max-width: 100% }}
.tokens {{ font: 15px/2 ui-monospace, monospace; overflow-wrap: anywhere }}
.tokens span {{ padding: 2px 1px; border-radius: 3px; margin-right: 1px }}
</style></head><body>
<h1>{title}</h1>
<p>Predicted: <b>{predicted}</b>, with probability {probability:.4f}. Blue tokens speak for it, red ones against it;
the attributions sum to {total:+.4f} nats, of {gained:+.4f} that the text adds to a neutral one.</p>
<p class="tokens">{tokens}</p>
{blocks}
</body></html>
"""
