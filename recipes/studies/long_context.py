"""Loss by position, up to several times the length that models were trained on, for kinds of positions."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from hf_llm.data import load_corpus
from hf_llm.evaluation.opening import LANGUAGE_MODELS, Opened, opened
from hf_llm.evaluation.perplexity import score_texts
from hf_llm.training.settings import build_section

from .cells import checked, quiet, run_cell, save_results, share_tokenizer, with_fields


@dataclass
class LongContext:
    """
    Attributes:
        schemes: name -> fields of the model's configuration; a model is trained with each.
        scalings: name -> `rope_parameters` that models with RoPE are tried with as well, without further training.
        multiples: of the training length at which losses are tabulated; texts are read up to the longest.
        documents: held-out texts that are long enough, at most so many.
        bucket: tokens over which losses are averaged, as a share of the training length.
    """

    schemes: dict[str, dict]
    scalings: dict[str, dict] = field(default_factory=dict)
    multiples: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    documents: int = 24
    bucket: float = 0.25

    def __post_init__(self):
        if not self.schemes:
            raise ValueError("long_context.schemes is empty: name at least one kind of positions")
        if not self.multiples or min(self.multiples) < 1:
            raise ValueError(f"long_context.multiples = {self.multiples}: must be at least 1")
        if not 0 < self.bucket <= 1:
            raise ValueError(f"long_context.bucket = {self.bucket}: must be above 0 and at most 1")


def open_with(folder: Path, rope_parameters: dict | None = None) -> Opened:
    """A decoder as it was saved, or with other `rope_parameters` (merged into its own)."""
    config = AutoConfig.from_pretrained(folder)
    if rope_parameters is not None:
        merged = {**config.rope_parameters, **rope_parameters}
        config = type(config)(**{**config.to_dict(), "rope_parameters": merged})
    model = LANGUAGE_MODELS["decoder"].from_pretrained(folder, config=config, dtype=torch.float32)
    return opened(model, AutoTokenizer.from_pretrained(folder), "decoder")


def loss_by_position(model: Opened, texts: list[str], length: int, bucket: int) -> list[float]:
    """
    Mean loss in nats per token of each `bucket` positions, over texts that are read in one piece.

    Args:
        texts: each of at least `length` + 4 tokens; what follows is not read.
        length: tokens; a model whose positions end with a table is read up to there.
    """
    length = min(length, model.limit - len(model.before)) if model.ends else length
    cut = [_first_tokens(model.tokenizer, text, length + 4) for text in texts]  # a cut may change the last tokens
    scored = np.stack([one.logprobs[:length] for one in score_texts(model, cut, length, length - 1, batch_size=1)])
    whole = np.pad(scored, ((0, 0), (0, -length % bucket)), constant_values=np.nan)
    return (-np.nanmean(whole.reshape(len(texts), -1, bucket), axis=(0, 2))).tolist()


def _first_tokens(tokenizer, text: str, length: int) -> str:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[: offsets[length - 1][1]]


def long_texts(settings: dict, length: int, count: int) -> list[str]:
    """Held-out texts of at least `length` + 4 tokens.

    Raises:
        ValueError: there are none.
    """
    config = checked(settings)
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer.path)
    corpus = load_corpus(config.data.corpus, "validation", held_out_fraction=config.data.held_out_fraction)
    texts = []
    for text in corpus["text"]:
        if len(texts) < count and len(tokenizer(text, verbose=False)["input_ids"]) >= length + 4:
            texts.append(text)
    if not texts:
        raise ValueError(f"data.corpus: no held-out document has {length:,} tokens; lower long_context.multiples")
    return texts


def run_study(settings: dict, output_dir: Path, say: Callable[[str], None] = print) -> dict:
    """
    Train a model for each kind of positions, unless it is finished, and write `long_context.json`, `.md` and `.png`.

    Args:
        settings: of a pretraining run, and a section `long_context`.

    Raises:
        ValueError: wrong settings, before any training.
        Stopped: by a signal; the same study goes on.
    """
    settings = dict(settings)
    study = build_section(LongContext, settings.pop("long_context", {}), "long_context")
    settings = share_tokenizer(settings, output_dir / "tokenizer")
    runs = {name: quiet(with_fields(settings, fields)) for name, fields in study.schemes.items()}
    for run in runs.values():
        checked(run)
    trained = checked(settings).data.row_length
    length, bucket = trained * max(study.multiples), max(round(trained * study.bucket), 1)
    texts = long_texts(settings, length, study.documents)

    losses = {}
    for name, run in runs.items():
        folder = output_dir / "cells" / name
        run_cell(run, folder)
        model = open_with(folder)
        losses[name] = loss_by_position(model, texts, length, bucket)
        scalings = study.scalings if model.model.config.position_embedding == "rope" else {}
        for scaling, parameters in scalings.items():
            losses[f"{name}, {scaling}"] = loss_by_position(open_with(folder, parameters), texts, length, bucket)
        say(f"{name}: " + ", ".join(f"{loss:.2f}" for loss in _at(losses[name], study.multiples, trained, bucket)))
    result = {
        "trained_length": trained,
        "multiples": study.multiples,
        "bucket": bucket,
        "documents": len(texts),
        "losses": losses,
    }
    save_results(output_dir, "long_context", result, table(result), functools.partial(draw, result=result))
    return result


def _at(losses: list[float], multiples: list[int], trained: int, bucket: int) -> list[float]:
    """Losses of the last bucket before each multiple of the training length, as far as there are any."""
    places = [multiple * trained // bucket - 1 for multiple in multiples]
    return [losses[place] for place in places if place < len(losses)]


def table(result: dict) -> str:
    """Perplexities at multiples of the training length as a Markdown table."""
    multiples, trained, bucket = result["multiples"], result["trained_length"], result["bucket"]
    lines = [
        f"Perplexity of the last {bucket} tokens before each position; {result['documents']} held-out texts, trained "
        f"on rows of {trained} tokens.",
        "",
        "| positions |" + "".join(f" {multiple * trained:,} |" for multiple in multiples),
        "|---|" + "---:|" * len(multiples),
    ]
    for name, losses in result["losses"].items():
        values = [f"{np.exp(loss):,.1f}" for loss in _at(losses, multiples, trained, bucket)]
        lines.append(f"| {name} | " + " | ".join(values + ["–"] * (len(multiples) - len(values))) + " |")
    return "\n".join(lines) + "\n"


def draw(figure, result: dict) -> None:
    """Loss over position, a curve for each kind of positions; scaled ones dashed in their kind's colour."""
    from matplotlib import colormaps

    trained, bucket = result["trained_length"], result["bucket"]
    figure.set_size_inches(8.5, 5)
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(name.split(", ")[0] for name in result["losses"]))
    colours = dict(zip(kinds, colormaps["tab10"].colors, strict=False))
    styles = dict(zip(dict.fromkeys(name.partition(", ")[2] for name in result["losses"]), ("-", "--", ":", "-.")))
    for name, losses in result["losses"].items():
        kind, _, scaling = name.partition(", ")
        positions = (np.arange(len(losses)) + 0.5) * bucket
        style = {"color": colours[kind], "linestyle": styles[scaling], "marker": "o", "markersize": 3}
        axes.plot(positions, losses, **style, linewidth=1.6, label=name)
    for multiple in result["multiples"]:
        axes.axvline(multiple * trained, color="black", linewidth=0.6, alpha=0.4)
        axes.annotate(
            f"{multiple} ×", (multiple * trained, 1), xycoords=("data", "axes fraction"), ha="right", va="top"
        )
    axes.set_xscale("log", base=2)
    axes.set_xlim(left=bucket / 2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel="position in the text (tokens)", ylabel="loss (nats per token)")
    axes.set_title(f"Loss by position; trained on rows of {trained} tokens")
    axes.grid(alpha=0.2)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
