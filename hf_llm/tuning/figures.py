"""Pictures of predictions. Each function draws into a matplotlib `Figure`."""

import numpy


def confusion(figure, labels: list[str], predictions: list[str], names: list[str]) -> None:
    """Share of the examples of each class (rows) that were taken for each class (columns)."""
    from sklearn.metrics import ConfusionMatrixDisplay

    side = 3 + 0.35 * len(names)
    figure.set_size_inches(side + 1, side)
    ConfusionMatrixDisplay.from_predictions(
        labels,
        predictions,
        labels=names,
        normalize="true",
        include_values=len(names) <= 20,
        values_format=".2f",
        xticks_rotation=45,
        cmap="Blues",
        ax=figure.subplots(),
    )


def calibration(figure, confidence: list[float], right: list[bool], bins: int = 10) -> None:
    """Accuracy over confidence, and how often each confidence occurs; the title has the expected calibration error
    (https://arxiv.org/abs/1706.04599, equation 3)."""
    confidence, right = numpy.asarray(confidence), numpy.asarray(right, dtype=float)
    places = numpy.minimum((confidence * bins).astype(int), bins - 1)
    filled = numpy.unique(places)
    mean, accuracy = (numpy.array([x[places == b].mean() for b in filled]) for x in (confidence, right))
    share = numpy.array([(places == b).mean() for b in filled])
    figure.set_size_inches(5, 4.5)
    axes = figure.subplots()
    axes.bar((filled + 0.5) / bins, share, width=0.9 / bins, color="#c6dbef", label="share of examples")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--")
    axes.plot(mean, accuracy, "o-", color="#2171b5", label="accuracy")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy; share of examples")
    axes.set_title(f"expected calibration error {(share * abs(accuracy - mean)).sum():.3f}")
    axes.legend(frameon=False, loc="upper left")


def scatter(figure, labels: list[float], predictions: list[float]) -> None:
    """True over predicted numbers."""
    from sklearn.metrics import PredictionErrorDisplay

    figure.set_size_inches(5, 5)
    options = {"kind": "actual_vs_predicted", "subsample": None, "scatter_kwargs": {"s": 6, "alpha": 0.4}}
    PredictionErrorDisplay.from_predictions(labels, predictions, ax=figure.subplots(), **options)


def bars(figure, values: dict[str, float], ylabel: str, counts: dict[str, int]) -> None:
    """One bar for each name, with the number of examples below it."""
    crowded = len(values) > 4
    figure.set_size_inches(max(4.5, 1.5 + 0.6 * len(values)), 4)
    axes = figure.subplots()
    axes.bar_label(axes.bar(range(len(values)), list(values.values()), color="#2171b5"), fmt="%.2f", fontsize=8)
    names = [f"{name}\n({counts[name]:,})" for name in values]
    axes.set_xticks(range(len(values)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    axes.set(ylabel=ylabel)
