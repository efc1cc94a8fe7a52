"""Corpora by one string: an embedded corpus or the texts of an embedded labelled data set, a local path or glob, or a
dataset on the Hub; weighted mixtures of them.

Every corpus comes out as a `datasets.Dataset` (or `IterableDataset`) of documents with a `text` column, split into
`train` and `validation` by a hash of each document's content: the split does not depend on order, on the rest of the
corpus or on the machine, and two copies of a document never straddle it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets

from . import sources
from .sources import CORPORA, TASKS, column_names, named
from .tasks import load_task


SPLITS = ("train", "validation")


@dataclass(frozen=True)
class CorpusSpec:
    """One source of documents.

    Attributes:
        name: a key of `CORPORA` or of `hf_llm.data.tasks.TASKS` (of which only training examples are read, so that
            what its tasks hold out stays unseen), a local file, folder or glob, or a dataset's name on the Hub.
        weight: share of documents drawn from this source in a mixture (relative to the others' weights).
        text_column: column that holds the text (labelled sets, jsonl, parquet, Hub); of conversations, a line is a
            message.
        config: the Hub dataset's configuration name.
        revision: the Hub dataset's git revision.
        part: of a labelled set, "1/2" or the like, as in [`hf_llm.data.tasks.TaskSpec`].
        hub_split: split of the Hub dataset that is read, before the held-out split is taken from it.
    """

    name: str
    weight: float = 1.0
    text_column: str = "text"
    config: str | None = None
    revision: str | None = None
    part: str | None = None
    hub_split: str = "train"

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(
                f"corpus name={self.name!r}: must be a non-empty string; {sources.legal_names('', CORPORA, TASKS)}"
            )
        if self.part is not None and not named(self.name, TASKS):
            raise ValueError(f"corpus {self.name!r}: part={self.part!r} is for labelled sets: {', '.join(TASKS)}")
        if not self.weight > 0:
            raise ValueError(f"corpus {self.name!r}: weight={self.weight!r} must be a number above 0")


def load_corpus(
    spec: str | Mapping | CorpusSpec | Sequence,
    split: str = "train",
    *,
    held_out_fraction: float = 0.05,
    streaming: bool = False,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads one split of a corpus or of a weighted mixture of corpora.

    Args:
        spec: a name, path, glob or Hub id; a mapping with `CorpusSpec`'s fields; or a list of those, which is a
            mixture. Mixed training documents are drawn with the given weights until every source has been read
            through once (smaller sources repeat); held-out documents are simply put one after the other.
        split: "train" or "validation".
        held_out_fraction: expected share of documents in the validation split, in [0, 1). With 0 all is train.
        streaming: return an `IterableDataset`, read from the files or the Hub as it is iterated.
        columns: columns to keep instead of `text`, e.g. ("source", "target") for supervised pairs.
        seed: of the mixture's draws.

    Raises:
        ValueError: unknown name, missing column, an empty or unreadable corpus, an empty split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={held_out_fraction!r}: must be in [0, 1)")
    is_list = isinstance(spec, Sequence) and not isinstance(spec, str)
    specs = [sources.parse_spec(CorpusSpec, s, "corpus") for s in (spec if is_list else [spec])]
    if not specs:
        raise ValueError("corpus=[]: a mixture needs at least one source")
    parts = [_load_split(s, split, held_out_fraction, streaming, columns) for s in specs]
    if len(parts) == 1:
        return parts[0]
    if split == "validation":
        return datasets.concatenate_datasets(parts)
    total = sum(s.weight for s in specs)
    probabilities = [s.weight / total for s in specs]
    return datasets.interleave_datasets(parts, probabilities, seed=seed, stopping_strategy="all_exhausted")


def _load_split(spec, split, held_out_fraction, streaming, columns):
    """One source's documents of one split, with the wanted columns only; never empty."""
    wanted = list(columns or [spec.text_column])
    dataset = _open(spec, streaming, wanted)
    existing = column_names(dataset)
    if missing := [c for c in wanted if c not in existing]:
        field = "columns" if columns else "text_column"
        raise ValueError(f"corpus {spec.name!r}: {field}={missing} not found; its columns are {existing}")
    dataset = dataset.select_columns(wanted)
    if not columns and spec.text_column != "text":
        dataset = dataset.rename_column(spec.text_column, "text")
        wanted = ["text"]
    rule = {"fraction": held_out_fraction, "held_out": split == "validation"}
    progress = {} if streaming else {"desc": f"Selecting the {split} split"}
    dataset = dataset.filter(_in_split, input_columns=wanted, fn_kwargs=rule, **progress)
    if next(iter(dataset), None) is None:
        raise ValueError(
            f"corpus {spec.name!r}: no document in split={split!r} with held_out_fraction={held_out_fraction}; "
            "the corpus is empty or too small for the fraction"
        )
    return dataset


def _in_split(*values, fraction: float, held_out: bool) -> bool:
    """Filter: keeps non-blank documents of one split. A pair is hashed as one document."""
    if not all(isinstance(v, str) and v.strip() for v in values):
        return False
    return (sources.place("\0".join(values)) < fraction) == held_out


def _open(spec: CorpusSpec, streaming: bool, columns: list[str]):
    """The whole source, before any split, with these columns at least."""
    if documents := named(spec.name, CORPORA, TASKS):
        if spec.name in CORPORA:
            dataset = datasets.Dataset.from_dict({"text": list(documents())})
        else:
            dataset = _as_text(load_task({"name": spec.name, "part": spec.part}, "train"), spec.text_column)
        return dataset.to_iterable_dataset() if streaming else dataset
    if files := sources.local_files(spec.name, "corpus"):
        return sources.read_files(spec.name, "corpus", {"train": files}, streaming, columns=columns)["train"]
    options = {"split": spec.hub_split, "revision": spec.revision, "streaming": streaming}
    return sources.read_hub(spec.name, "corpus", CORPORA, TASKS, name=spec.config, **options)


def _as_text(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """The data set, with text in a column where it had conversations (lists of messages with `content`)."""
    if not isinstance(dataset.features.get(column), datasets.List):
        return dataset
    texts = ["\n".join(message["content"] for message in messages) for messages in dataset[column]]
    return dataset.remove_columns(column).add_column(column, texts)
