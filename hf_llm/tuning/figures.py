"""Pictures of predictions. Each function draws into a matplotlib `Figure`."""

import numpy


def confusion(figure, labels: list[str], predictions: list[str], names: list[str]) -> None:
    """Share of the examples of each class (rows) that were taken for each class (columns), counts written in."""
    place = {name: i for i, name in enumerate(names)}
    counts = numpy.zeros((len(names), len(names)), dtype=int)
    for label, prediction in zip(labels, predictions):
        counts[place[label], place[prediction]] += 1
    shares = counts / numpy.maximum(counts.sum(1, keepdims=True), 1)
    side = 3 + 0.35 * len(names)
    figure.set_size_inches(side + 1, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 20:
        for (row, column), count in numpy.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label="share of the true class", shrink=0.8)


def calibration(figure, confidence: list[float], right: list[bool], bins: int = 10) -> None:
    """Accuracy over confidence, and how often each confidence occurs; the title has the expected calibration error
    (https://arxiv.org/abs/1706.04599, equation 3)."""
    confidence, right = numpy.asarray(confidence), numpy.asarray(right, dtype=float)
    places = numpy.minimum((confidence * bins).astype(int), bins - 1)
    filled = [b for b in range(bins) if (places == b).any()]
    mean = [confidence[places == b].mean() for b in filled]
    accuracy = [right[places == b].mean() for b in filled]
    share = [(places == b).mean() for b in filled]
    error = sum(s * abs(a - m) for s, a, m in zip(share, accuracy, mean))
    figure.set_size_inches(5, 4.5)
    axes = figure.subplots()
    axes.bar([(b + 0.5) / bins for b in filled], share, width=0.9 / bins, color="#c6dbef", label="share of examples")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    axes.plot(mean, accuracy, "o-", color="#2171b5", label="accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy; share of examples")
    axes.set_title(f"expected calibration error {error:.3f}")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["right", "top"]].set_visible(False)


def scatter(figure, labels: list[float], predictions: list[float]) -> None:
    """Predicted over true numbers."""
    figure.set_size_inches(5, 5)
    axes = figure.subplots()
    axes.plot(labels, predictions, ".", color="#2171b5", markersize=3, alpha=0.4)
    ends = [min(*labels, *predictions), max(*labels, *predictions)]
    axes.plot(ends, ends, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="true", ylabel="predicted")
    axes.spines[["right", "top"]].set_visible(False)


def bars(figure, values: dict[str, float], ylabel: str, counts: dict[str, int] | None = None) -> None:
    """One bar for each name, with the number of examples below it."""
    figure.set_size_inches(max(4.5, 1.5 + 0.6 * len(values)), 4)
    axes = figure.subplots()
    drawn = axes.bar(range(len(values)), list(values.values()), color="#2171b5")
    axes.bar_label(drawn, fmt="%.2f", fontsize=8)
    names = [f"{name}\n({counts[name]:,})" if counts else name for name in values]
    axes.set_xticks(
        range(len(values)), names, rotation=30 if len(values) > 4 else 0, ha="right" if len(values) > 4 else "center"
    )
    axes.set(ylabel=ylabel)
    axes.spines[["right", "top"]].set_visible(False)
