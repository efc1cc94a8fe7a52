"""A ladder of small runs, a scaling law fitted to them, and a larger run that tests what it predicts."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_llm.training.settings import build_section

from .cells import (
    checked,
    quiet,
    run_cell,
    save_results,
    share_tokenizer,
    size_of,
    tokens_of,
    with_fields,
    with_values,
)
from .scaling_laws import Fit, ScalingLaw, fit_scaling_law


CONSTANTS = tuple(f.name for f in dataclasses.fields(ScalingLaw))


@dataclass
class Ladder:
    """
    Which runs there are.

    Attributes:
        models: fields of the model's configuration that make each size.
        steps: optimizer steps; every model is trained for each of them.
        target: fields of the model and `max_steps` of the run that is predicted, larger than the others.
        bootstrap: samples for confidence intervals.
    """

    models: list[dict]
    steps: list[int]
    target: dict
    bootstrap: int = 200

    def __post_init__(self):
        if len(self.models) < 2 or len(self.steps) < 2 or len(self.models) * len(self.steps) < 6:
            raise ValueError("ladder: needs at least two models, two steps and six runs in all")
        if "max_steps" not in self.target:
            raise ValueError("ladder.target.max_steps is missing: how long the predicted run is")


def run_study(settings: dict, output_dir: Path, say: Callable[[str], None] = print) -> dict:
    """
    Train what is not finished, fit, predict, train the target, and write `scaling.json`, `scaling.md`, `scaling.png`.

    Args:
        settings: of a pretraining run, and a section `ladder`.

    Raises:
        ValueError: wrong settings, before any training.
        Stopped: by a signal; the same study goes on.
    """
    settings = dict(settings)
    ladder = build_section(Ladder, settings.pop("ladder", {}), "ladder")
    settings = share_tokenizer(settings, output_dir / "tokenizer")
    planned = [_rung(settings, model, steps) for model in ladder.models for steps in ladder.steps]
    goal = _rung(settings, {k: v for k, v in ladder.target.items() if k != "max_steps"}, ladder.target["max_steps"])
    points = []
    for rung in planned:
        points.append(_measure(rung, output_dir / "cells"))
        steps = rung["training"]["max_steps"]
        say(f"[{len(points)}/{len(planned)}] {points[-1]['parameters']:,} parameters, {steps} steps: done")
    columns = {name: [p[name] for p in points] for name in ("parameters", "tokens", "loss")}
    fit = fit_scaling_law(*columns.values(), bootstrap=ladder.bootstrap)
    size, tokens = size_of(goal)["parameters"], tokens_of(checked(goal))
    low, high = fit.interval(lambda law: float(law.loss(size, tokens)))
    prediction = {
        "parameters": size,
        "tokens": tokens,
        "loss": float(fit.law.loss(size, tokens)),
        "interval": [low, high],
    }
    say(f"predicted: loss {prediction['loss']:.4f} ({low:.4f} to {high:.4f}); now training it")
    measured = _measure(goal, output_dir / "cells")
    result = {
        "points": points,
        "law": dataclasses.asdict(fit.law),
        "intervals": {name: fit.interval(lambda law, name=name: getattr(law, name)) for name in CONSTANTS},
        "residual": float(np.abs(fit.residuals).max()),
        "prediction": prediction,
        "measured": measured,
    }
    save_results(output_dir, "scaling", result, table(result), functools.partial(draw, result=result, fit=fit))
    return result


def _rung(settings: dict, model: dict, steps: int) -> dict:
    """Settings of one run; warm-up keeps its share of the steps."""
    training = settings["training"]
    warmup = max(round(training.get("warmup_steps", 0) / training.get("max_steps", steps) * steps), 1)
    changed = with_values(settings, {"training.warmup_steps": warmup, "training.max_steps": steps})
    rung = quiet(with_fields(changed, model))
    checked(rung)
    return rung


def _measure(rung: dict, folder: Path) -> dict:
    """Train one rung; `tokens` are those of its rows, as FLOPs count them."""
    size, steps = size_of(rung), rung["training"]["max_steps"]
    metrics = run_cell(rung, folder / f"{size['parameters']}-{steps}")
    return {
        "parameters": size["parameters"],
        "tokens": tokens_of(checked(rung)),
        "flops": size["flops"],
        "loss": metrics["eval_loss"],
        "seconds": metrics["train_seconds"],
    }


def table(result: dict) -> str:
    """A result as Markdown."""
    lines = ["| parameters | tokens | training FLOPs | loss |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {p['parameters']:,} | {p['tokens']:,} | {p['flops']:.2e} | {p['loss']:.4f} |" for p in result["points"]
    ]
    lines += ["", "| constant | fitted | 95 % interval |", "|---|---:|---:|"]
    for name in CONSTANTS:
        low, high = result["intervals"][name]
        lines.append(f"| {name} | {result['law'][name]:.4g} | {low:.4g} to {high:.4g} |")
    predicted, measured = result["prediction"], result["measured"]
    low, high = predicted["interval"]
    lines += [
        "",
        f"{predicted['parameters']:,} parameters and {predicted['tokens']:,} tokens: predicted loss "
        f"{predicted['loss']:.4f} ({low:.4f} to {high:.4f}), measured {measured['loss']:.4f} "
        f"({100 * (measured['loss'] / predicted['loss'] - 1):+.1f} %).",
    ]
    return "\n".join(lines) + "\n"


def draw(figure, result: dict, fit: Fit) -> None:
    """Losses over tokens, one curve for each size, and the predicted run with its interval beside the real one."""
    from matplotlib import colormaps
    from matplotlib.ticker import EngFormatter, NullFormatter

    short = EngFormatter(sep=" ", places=1)

    predicted, measured = result["prediction"], result["measured"]
    figure.set_size_inches(8, 5)
    axes = figure.add_subplot()
    sizes = sorted({p["parameters"] for p in result["points"]})
    grid = np.geomspace(min(p["tokens"] for p in result["points"]), predicted["tokens"] * 1.1, 60)
    colours = colormaps["viridis"](np.linspace(0, 0.75, len(sizes)))
    for size, colour in zip(sizes, colours, strict=True):
        points = [(p["tokens"], p["loss"]) for p in result["points"] if p["parameters"] == size]
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=5)
        axes.plot(grid, fit.law.loss(size, grid), color=colour, linewidth=1.3, label=f"{short(size)} parameters")
    axes.plot(grid, fit.law.loss(predicted["parameters"], grid), color="#d94801", linestyle="--", linewidth=1.2)
    low, high = predicted["interval"]
    bars = [[max(predicted["loss"] - low, 0)], [max(high - predicted["loss"], 0)]]
    label = f"predicted for {short(predicted['parameters'])}, 95 % interval"
    axes.errorbar(predicted["tokens"], predicted["loss"], bars, fmt="s", color="#d94801", capsize=4, label=label)
    axes.plot(measured["tokens"], measured["loss"], "*", color="black", markersize=12, label="measured", zorder=5)
    law = result["law"]
    axes.set_title(
        f"L = {law['E']:.2f} + {law['A']:.3g} / N^{law['alpha']:.2f} + {law['B']:.3g} / D^{law['beta']:.2f}",
        fontsize=11,
    )
    axes.set(xscale="log", xlabel="training tokens", ylabel="held-out loss (nats per token)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, which="both")
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(frameon=False)
