"""How good generated texts are, and what simpler methods would have given."""

from collections.abc import Callable, Sequence

from datasets import Dataset

from hf_llm.evaluation.metrics import load_metric


# our name -> metric module, and figures by name from what it computes; all between 0 and 100, as papers report them
METRICS: dict[str, tuple[str, Callable[[dict], dict[str, float]]]] = {
    "bleu": ("sacrebleu", lambda found: {"bleu": found["score"]}),
    "chrf": ("chrf", lambda found: {"chrf": found["score"]}),
    "rouge": ("rouge", lambda found: {name: 100 * found[name] for name in ("rouge1", "rouge2", "rougeL")}),
}


class TextMetrics:
    """Several metrics at once.

    Attributes:
        names: of the figures, known after the first `compute`.
        notes: sentences that say how they were computed.
    """

    def __init__(self, names: Sequence[str]):
        self._metrics = {name: load_metric(METRICS[name][0]) for name in names}
        self.names: list[str] = []
        self.notes: list[str] = []

    def compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Figures by name for texts and their references, one each."""
        figures, notes = {}, []
        for name, metric in self._metrics.items():
            found = metric.compute(predictions=list(predictions), references=list(references))
            figures |= {key: float(value) for key, value in METRICS[name][1](found).items()}
            if "signature" in found:
                notes.append(f"{name}: sacrebleu, {found['signature']}.")
        self.names, self.notes = list(figures), notes
        return figures


def nearest_neighbour(train: Dataset, sources: Sequence[str]) -> list[str]:
    """For each source, the target of the most similar training source: cosine of TF-IDF vectors of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+")
    index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectorizer.fit_transform(train["source"][:]))
    nearest = index.kneighbors(vectorizer.transform(sources), return_distance=False)[:, 0]
    targets = train["target"][:]
    return [targets[i] for i in nearest]


def copy_source(train: Dataset, sources: Sequence[str]) -> list[str]:
    """The source itself."""
    return list(sources)


BASELINES = {"nearest neighbour": nearest_neighbour, "copy of the source": copy_source}


def samples_text(rows: Sequence[dict]) -> str:
    """Source, prediction and reference of a few examples, as Markdown."""
    blocks = []
    for row in rows:
        lines = (f"> **{name}** {' '.join(row[key].split())}" for key, name in _SHOWN.items())
        blocks.append("\n>\n".join(lines))
    return "\n\n".join(blocks)


_SHOWN = {"source": "source", "prediction": "model", "reference": "reference"}
