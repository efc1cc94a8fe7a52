"""The page of a comparison: figures, plots and samples in one HTML file that needs no other."""

import html
from pathlib import Path

import numpy
import pandas
from scipy import stats

from .pictures import image, png


# figure -> (heading, format, figure with its standard error)
COLUMNS = {
    "reward": ("reward", "{:.3f}", "reward_error"),
    "judged_positive": ("judged positive", "{:.1%}", "judged_positive_error"),
    "kl": ("KL, nats per text", "{:.2f}", "kl_error"),
    "perplexity_before": ("perplexity before", "{:.1f}", None),
    "distinct_2": ("distinct-2", "{:.3f}", None),
    "tokens": ("tokens", "{:.1f}", None),
    "ended": ("ended", "{:.0%}", None),
}


def table_of(results: dict) -> pandas.DataFrame:
    """The figures as text, a row for each model."""
    cells = {}
    for key, (heading, form, error) in COLUMNS.items():
        shown = [
            form.format(figures[key]) + (f" ± {form.format(figures[error])}" if error and figures[error] else "")
            for figures in results["models"].values()
        ]
        cells[heading] = shown
    return pandas.DataFrame(cells, list(results["models"]))


def sentences(results: dict) -> list[str]:
    """What the table does not say."""
    judge, equal = results["judge"], results["equal_length"]
    return [
        f"{results['prompts']} held-out prompts, sampled at temperature 1; ± is one standard error.",
        f"The judge, a linear classifier on words and parts of words, was taught {judge['train_texts']:,} texts of "
        f"{judge['data']}; on {judge['test_texts']:,} held-out texts it is right in {judge['accuracy']:.1%} (the more "
        f"frequent class: {judge['majority']:.1%}).",
        f"Cut to the shorter of the two, text by text: reward {equal['after']['reward']:.3f} after, "
        f"{equal['best']['reward']:.3f} for the best before; judged positive {equal['after']['judged_positive']:.1%} "
        f"and {equal['best']['judged_positive']:.1%}.",
        "KL is that of the model after from the model before, estimated on its own samples; that of choosing the best "
        "of n is log n - (n - 1) / n. Perplexity is that of the texts under the model before. Distinct-2 is the share "
        "of distinct pairs of words.",
    ]


def table_text(results: dict) -> str:
    """The table and its notes for a terminal."""
    return "\n".join(["", table_of(results).to_string(), "", *sentences(results)])


def draw_rewards(samples: dict):
    """How rewards are spread, and what share of texts the judge finds positive."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    edges = numpy.histogram_bin_edges(numpy.concatenate([s.rewards for s in samples.values()]), bins=30)
    colours = ["#7f7f7f", "#2171b5", "#d94801"]
    for (name, taken), colour in zip(samples.items(), colours, strict=True):
        left.hist(taken.rewards, bins=edges, histtype="step", linewidth=1.8, color=colour, label=name)
    left.set(xlabel="reward", ylabel="texts")
    left.legend(frameon=False)
    shares = [taken.positive.mean() for taken in samples.values()]
    errors = [1.96 * stats.sem(taken.positive) for taken in samples.values()]
    bars = right.bar(range(len(shares)), shares, yerr=errors, color=colours, capsize=4)
    right.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3)
    right.set_xticks(range(len(shares)), list(samples))
    right.set(ylim=(0, 1.1), ylabel="judged positive (95 % interval)")
    for axes in (left, right):
        axes.spines[["right", "top"]].set_visible(False)
    return figure


def write_page(folder: Path, results: dict, prompts: list[str], samples: dict, shown: int, pictures: dict) -> None:
    """Write `index.html`, and `rewards.png` beside it."""
    drawn = png(draw_rewards(samples))
    (folder / "rewards.png").write_bytes(drawn)
    images = {"Rewards and judgements": drawn, **{name: Path(path).read_bytes() for name, path in pictures.items()}}
    page = _PAGE.format(
        table=table_of(results).to_html(border=0),
        notes="\n".join(f"<li>{html.escape(text)}</li>" for text in sentences(results)),
        images="\n".join(image(name, data) for name, data in images.items()),
        samples="\n".join(_sample(i, prompts, samples) for i in range(min(shown, len(prompts)))),
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _sample(i: int, prompts: list[str], samples: dict) -> str:
    lines = []
    for name, taken in samples.items():
        mark = "positive" if taken.positive[i] else "negative"
        text = f"<b>{html.escape(prompts[i])}</b>{html.escape(taken.texts[i])}"
        lines.append(
            f'<tr class="{mark}"><td>{html.escape(name)}</td><td>{text}</td><td>{taken.rewards[i]:.2f}</td></tr>'
        )
    return "<table>\n" + "\n".join(lines) + "\n</table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Before and after</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }}
img {{ max-width: 100% }}
table {{ border-collapse: collapse; margin: 1em 0; width: 100% }}
td, th {{ padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left; white-space: nowrap }}
.positive td:nth-child(2), .negative td:nth-child(2) {{ text-align: left }}
.positive td:last-child {{ background: #e5f5e0 }} .negative td:last-child {{ background: #fee0d2 }}
</style></head><body>
<h1>Before and after</h1>
{table}
<ul>
{notes}
</ul>
{images}
<h2>Samples</h2>
<p>The first held-out prompts, not chosen. Rewards on the right, green where the judge finds the text positive.</p>
{samples}
</body></html>
"""
