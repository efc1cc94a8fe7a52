"""Compare the validation losses of pretraining runs at equal FLOPs: a picture, and a table of where they end.

    python recipes/compare_runs.py curves.png --runs "from a decoder" outputs/a outputs/b --runs scratch outputs/c
        [--before "from a decoder" outputs/demo]

Runs under one label differ in their seed: the table has their mean and their range. `--before` names a run that came
before those of a label: their curve is drawn once more, behind the FLOPs that it took.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

from matplotlib.ticker import EngFormatter

from hf_llm.training.checkpoints import list_checkpoints
from hf_llm.training.report import draw_figures
from studies.command import exit_status, parser_of


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--runs", nargs="+", action="append", required=True, metavar=("LABEL", "DIR"))
    parser.add_argument("--before", nargs=2, action="append", default=[], metavar=("LABEL", "DIR"))
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    return exit_status(__file__, lambda: compare(options))


def compare(options: argparse.Namespace) -> None:
    groups = {label: [read_curve(run) for run in runs] for label, *runs in options.runs}
    before = {label: last_state(run)["total_flos"] for label, run in options.before}
    drawn = functools.partial(draw, groups=groups, before=before, title=options.title)
    draw_figures(options.picture.parent, {options.picture.name: drawn})
    print("| | runs | FLOPs | with what came before | validation loss | range |\n|---|---:|---:|---:|---:|---:|")
    for label, curves in groups.items():
        flops, ends = curves[0][-1][0], [curve[-1][1] for curve in curves]
        print(
            f"| {label} | {len(curves)} | {flops:.2e} | {flops + before.get(label, 0.0):.2e} | "
            f"{sum(ends) / len(ends):.3f} | {min(ends):.3f}–{max(ends):.3f} |"
        )


def last_state(run: str) -> dict:
    """The trainer's state at the last checkpoint of a run. Raises ValueError if there is none."""
    checkpoints = list_checkpoints(Path(run))
    if not checkpoints:
        raise ValueError(f"{run} has no checkpoint of a run")
    return json.loads((checkpoints[-1] / "trainer_state.json").read_text(encoding="utf-8"))


def read_curve(run: str) -> list[tuple[float, float]]:
    """(training FLOPs, validation loss) at each evaluation of a run. Raises ValueError if there is none."""
    state = last_state(run)
    per_step = state["total_flos"] / state["global_step"]
    curve = [(e["step"] * per_step, e["eval_loss"]) for e in state["log_history"] if "eval_loss" in e]
    if not curve:
        raise ValueError(f"{run} was never evaluated: set training.eval_steps")
    return curve


def draw(figure, groups: dict[str, list], before: dict[str, float], title: str) -> None:
    """One colour for each label, a line for each run, dashed where the FLOPs of a run before are counted too."""
    figure.set_size_inches(8, 4.8)
    axes = figure.subplots()
    for i, (label, curves) in enumerate(groups.items()):
        for n, curve in enumerate(curves):
            flops, losses = zip(*curve, strict=True)
            axes.plot(flops, losses, "o-", color=f"C{i}", markersize=3, linewidth=1.4, label="" if n else label)
            if label in before:
                later = [f + before[label] for f in flops]
                name = "" if n else f"{label}, with the run before"
                axes.plot(later, losses, "o--", color=f"C{i}", markersize=3, linewidth=1, alpha=0.6, label=name)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set(xlabel="training FLOPs", ylabel="validation loss (nats per target token)", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(frameon=False)


if __name__ == "__main__":
    sys.exit(main())
