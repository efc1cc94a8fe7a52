"""Ablations at equal budget: every combination of some settings, several seeds each, compared with the first one."""

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from hf_llm.training.settings import load_yaml, suggestion

from .cells import checked, model_of, quiet, run_cell, save_results, share_tokenizer, size_of, with_values


MATCHES = ("parameters", "flops", "none")
WIDTHS = ("intermediate_size", "moe_intermediate_size")  # what is adjusted to match parameters
MULTIPLE = 8  # of which an adjusted width is one


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, mean - half to mean + half; `half` is None for a single value."""

    mean: float
    half: float | None
    count: int


def mean_interval(values: list[float], confidence: float = 0.95) -> Interval:
    """Mean of a few independent values with Student's t interval."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return Interval(float(values.mean()), None, len(values))
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * stats.sem(values)), len(values))


def parse_variations(words: list[str]) -> dict[str, list]:
    """
    `["norm_placement=pre,sandwich", "training.learning_rate=1e-3,2e-3"]` -> dotted field -> values. A field without a
    section is one of the model.

    Raises:
        ValueError: not of that form, or the same field twice.
    """
    variations = {}
    for word in words:
        name, equals, values = word.partition("=")
        values = load_yaml(f"[{values}]") if equals else []
        if not name or len(values) < 2:
            raise ValueError(f"--vary {word!r}: write field=value,value with at least two values")
        dotted = name if "." in name else f"model.{name}"
        if dotted in variations:
            raise ValueError(f"--vary {name}: given twice")
        if len({json.dumps(v) for v in values}) < len(values):
            raise ValueError(f"--vary {word!r}: the same value twice")
        variations[dotted] = values
    if not variations:
        raise ValueError("--vary is missing: say what to vary, as field=value,value")
    return variations


@dataclass
class Study:
    """
    An ablation.

    Attributes:
        settings: of the pretraining run that is varied.
        variations: dotted field -> values; the first ones together are the baseline.
        seeds: of each combination; the same seed means the same data order in all.
        match: what is equal in all runs: "parameters" (feed-forward widths are adjusted), "flops" (steps are), "none".
        output_dir: where runs and results go.
    """

    settings: dict
    variations: dict[str, list]
    seeds: list[int]
    output_dir: Path
    match: str = "parameters"
    combinations: list[dict] = field(init=False)

    def __post_init__(self):
        if self.match not in MATCHES:
            raise ValueError(f"match = {self.match!r} is unknown{suggestion(self.match, MATCHES)}")
        adjusted = {"parameters": WIDTHS, "flops": ("max_steps",)}.get(self.match, ())
        for dotted in self.variations:
            if dotted.split(".")[-1] in adjusted:
                raise ValueError(f"--vary {dotted} cannot be varied with match = {self.match!r}, which adjusts it")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: needs at least one, and no seed twice")
        if "max_steps" not in self.settings.get("training", {}):
            raise ValueError("training.max_steps is missing: an ablation compares runs of stated length")
        values = itertools.product(*self.variations.values())
        self.combinations = [dict(zip(self.variations, v, strict=True)) for v in values]

    def prepared(self) -> list[dict]:
        """The settings of each combination, all checked and matched to the baseline. Nothing has been trained."""
        settings = share_tokenizer(self.settings, self.output_dir / "tokenizer")
        varied = [with_values(settings, combination) for combination in self.combinations]
        for one in varied:
            checked(one)
        return [quiet(MATCHERS[self.match](one, varied[0])) for one in varied]

    def run(self, say: Callable[[str], None] = print) -> dict:
        """
        Train what is not finished and write `ablation.json`, `ablation.md` and `ablation.png`.

        Raises:
            ValueError: wrong settings, before any training.
            Stopped: by a signal; the same study goes on.
        """
        prepared = self.prepared()
        sizes = [size_of(settings) for settings in prepared]
        cells, total = [], len(prepared) * len(self.seeds)
        for combination, settings, size in zip(self.combinations, prepared, sizes, strict=True):
            metrics = []
            for seed in self.seeds:
                folder = self.output_dir / "cells" / _slug(combination) / f"seed-{seed}"
                metrics.append(run_cell({**settings, "seed": seed}, folder))
                done = len(cells) * len(self.seeds) + len(metrics)
                say(f"[{done}/{total}] {name_of(combination)}, seed {seed}: loss {metrics[-1]['eval_loss']:.4f}")
            cells.append({"varied": combination, "name": name_of(combination), "size": size, "metrics": metrics})
        result = {
            "match": self.match,
            "seeds": self.seeds,
            "tokens": [m["tokens"] for m in cells[0]["metrics"]],
            "cells": summarised(cells),
        }
        save_results(self.output_dir, "ablation", result, table(result), functools.partial(draw, result=result))
        return result


def _match_parameters(settings: dict, baseline: dict) -> dict:
    """Adjust the widths of the feed-forward layers, in which the number of parameters is linear."""
    target = size_of(baseline)["parameters"]
    parts = [f"model.{part}." for part in ("encoder", "decoder") if part in settings["model"]] or ["model."]
    config = model_of(settings).config.get_text_config(decoder=True).to_dict()
    width = next((name for name in reversed(WIDTHS) if config.get(name)), WIDTHS[0])

    def at(value: int) -> dict:
        return with_values(settings, {f"{part}{width}": value for part in parts})

    current = config[width]
    low, high = (size_of(at(value))["parameters"] for value in (current, 2 * current))
    if low == target or high == low:
        return settings
    exact = current + (target - low) * current / (high - low)
    adjusted = max(MULTIPLE, round(exact / MULTIPLE) * MULTIPLE)
    found = size_of(at(adjusted))["parameters"]
    if abs(found - target) > 0.02 * target:
        raise ValueError(
            f"match = 'parameters': with {width} = {adjusted} the model has {found:,} parameters, the baseline "
            f"{target:,}; choose a larger model, or match = 'none'"
        )
    return at(adjusted)


def _match_flops(settings: dict, baseline: dict) -> dict:
    """Adjust the steps."""
    target, size = size_of(baseline)["flops"], size_of(settings)["flops"]
    steps = round(settings["training"]["max_steps"] * target / size)
    return with_values(settings, {"training.max_steps": max(steps, 1)})


MATCHERS = {"parameters": _match_parameters, "flops": _match_flops, "none": lambda settings, baseline: settings}


def name_of(combination: dict) -> str:
    """`norm_placement=pre position_embedding=rope`."""
    return " ".join(f"{dotted.split('.')[-1]}={value}" for dotted, value in combination.items())


def _slug(combination: dict) -> str:
    return "_".join(
        f"{dotted.removeprefix('model.')}={json.dumps(v).strip(chr(34))}" for dotted, v in combination.items()
    ).translate(str.maketrans(dict.fromkeys(' /"{}[]:,', "-")))


def summarised(cells: list[dict]) -> list[dict]:
    """Cells with `loss` and `bits_per_byte` as intervals over seeds, and `difference`: of the loss from the first
    cell's with the same seed, as an interval of its own (paired)."""
    base = [m["eval_loss"] for m in cells[0]["metrics"]]
    rows = []
    for cell in cells:
        losses = [m["eval_loss"] for m in cell["metrics"]]
        rows.append(
            {
                **{name: cell[name] for name in ("varied", "name", "size")},
                "losses": losses,
                "loss": vars(mean_interval(losses)),
                "bits_per_byte": vars(mean_interval([m["eval_bits_per_byte"] for m in cell["metrics"]])),
                "difference": vars(mean_interval([a - b for a, b in zip(losses, base, strict=True)])),
            }
        )
    return rows


def _pm(interval: dict, signed: bool = False) -> str:
    sign = "+" if signed else ""
    half = "" if interval["half"] is None else f" ± {interval['half']:.4f}"
    return f"{interval['mean']:{sign}.4f}{half}"


def _seeds(result: dict) -> str:
    count = len(result["seeds"])
    return f"{count} seed{'s' if count > 1 else ''}"


def table(result: dict) -> str:
    """A result as a Markdown table."""
    lines = [
        "Held-out loss (nats per target token), mean and 95 % confidence interval over "
        f"{_seeds(result)} (Student's t); the difference is paired by seed. Matched: {result['match']}.",
        "",
        "| | parameters | training FLOPs | loss | bits per byte | difference from the first |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for i, row in enumerate(result["cells"]):
        difference = _pm(row["difference"], signed=True) if i else ""
        lines.append(
            f"| {row['name']} | {row['size']['parameters']:,} | {row['size']['flops']:.3g} | {_pm(row['loss'])} "
            f"| {_pm(row['bits_per_byte'])} | {difference} |"
        )
    return "\n".join(lines) + "\n"


def draw(figure, result: dict) -> None:
    """Losses by cell: each seed as a dot, the mean with its confidence interval."""
    rows = result["cells"]
    figure.set_size_inches(8, 1.6 + 0.5 * len(rows))
    axes = figure.add_subplot()
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        axes.plot(row["losses"], [place] * len(row["losses"]), "o", color="#9ecae1", markersize=5)
        half = row["loss"]["half"] or 0.0
        axes.errorbar(row["loss"]["mean"], place, xerr=half, fmt="D", color="#08519c", capsize=4, markersize=6)
    axes.axvline(rows[0]["loss"]["mean"], color="#08519c", linewidth=0.8, linestyle=":")
    axes.set_yticks(list(places), [row["name"].replace(" ", "\n", 1) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("held-out loss (nats per target token): seeds, mean and 95 % confidence interval")
    axes.set_title(f"Ablation, {_seeds(result)}, matched: {result['match']}")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["right", "top"]].set_visible(False)
