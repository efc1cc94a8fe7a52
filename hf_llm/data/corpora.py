"""Corpora by one string: an embedded corpus or the texts of an embedded labelled data set, a local path or glob, or a
dataset on the Hub; weighted mixtures of them.

Every corpus comes out as a `datasets.Dataset` (or `IterableDataset`) of documents with a `text` column, split into
`train` and `validation` by a hash of each document's content: the split does not depend on order, on the rest of the
corpus or on the machine, and two copies of a document never straddle it.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets
import pyarrow.compute

from . import sources
from .documents import SplitDocuments, split_documents, split_single
from .sources import CORPORA, TASKS, column_names, named
from .tasks import load_task


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "all")
_SMALL = 1000  # documents of a corpus of which one at least is held out


@dataclass(frozen=True)
class CorpusSpec:
    """One source of documents.

    Attributes:
        name: a key of `CORPORA` or of `hf_llm.data.tasks.TASKS` (of which only training examples are read, so that
            what its tasks hold out stays unseen), a local file, folder or glob, or a dataset's name on the Hub.
        weight: share of the text (bytes) that comes from this source in a mixture, relative to the others' weights.
            None in all of them reads each source once, and counts as 1 beside others.
        text_column: column that holds the text (labelled sets, jsonl, parquet, Hub); of conversations, a line is a
            message.
        config: the Hub dataset's configuration name.
        revision: the Hub dataset's git revision.
        part: of a labelled set, "1/2" or the like, as in [`hf_llm.data.tasks.TaskSpec`].
        hub_split: split of the Hub dataset that is read, before the held-out split is taken from it.
        split_documents: how texts are cut into documents, `{by: blank_lines | paragraphs | words, max_words: N}` (see
            [`hf_llm.data.documents.SplitDocuments`]). None leaves texts as they are, but cuts a corpus of one text.
    """

    name: str
    weight: float | None = None
    text_column: str = "text"
    config: str | None = None
    revision: str | None = None
    part: str | None = None
    hub_split: str = "train"
    split_documents: Mapping | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(
                f"corpus name={self.name!r}: must be a non-empty string; {sources.legal_names('', CORPORA, TASKS)}"
            )
        if self.part is not None and not named(self.name, TASKS):
            raise ValueError(f"corpus {self.name!r}: part={self.part!r} is for labelled sets: {', '.join(TASKS)}")
        if self.split_documents is not None:
            sources.parse_options(SplitDocuments, self.split_documents, f"corpus {self.name!r}: split_documents")
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"corpus {self.name!r}: weight={self.weight!r} must be a number above 0")


def load_corpus(
    spec: str | Mapping | CorpusSpec | Sequence,
    split: str = "train",
    *,
    held_out_fraction: float = 0.05,
    streaming: bool = False,
    columns: Sequence[str] | None = None,
    seed: int = 0,
    report: list[dict] | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads one split of a corpus or of a mixture of corpora.

    Args:
        spec: a name, path, glob or Hub id; a mapping with `CorpusSpec`'s fields; or a list of those, which is a
            mixture. Without weights every document of every source comes once. With weights, training documents are
            drawn so that shares of text are those of the weights, until every source has been read through once
            (smaller sources repeat; how often is logged). Held-out documents are put one after the other.
        split: "train", "validation", or "all", which is both.
        held_out_fraction: expected share of documents in the validation split, in [0, 1). With 0 all is train. Of
            fewer than a thousand documents, one at least is held out.
        streaming: return an `IterableDataset`, read from the files or the Hub as it is iterated.
        columns: columns to keep instead of `text`, e.g. ("source", "target") for supervised pairs.
        seed: of the mixture's draws.
        report: a list that is given a record for each source: `source`, and of what is not streamed `documents`,
            `bytes` and `epochs`, how often it is read.

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
    is_weighted = any(s.weight is not None for s in specs)
    weights = [1.0 if s.weight is None else s.weight for s in specs]
    parts = [_load_split(s, split, held_out_fraction, streaming, columns) for s in specs]
    sizes = [_size(part, len(parts) > 1) for part in parts]
    mixed = len(parts) > 1 and split == "train" and is_weighted
    probabilities = _probabilities(weights, sizes) if mixed else None
    records = [{"source": s.name, **({} if streaming else size)} for s, size in zip(specs, sizes, strict=True)]
    if not streaming:
        epochs = _epochs(probabilities, sizes) if mixed else [1.0] * len(parts)
        records = [record | {"epochs": round(times, 2)} for record, times in zip(records, epochs, strict=True)]
        for record in records if mixed else ():
            logger.warning(
                "corpus %(source)s: %(documents)d documents, %(bytes)d bytes, read %(epochs).2f times", record
            )
    if report is not None:
        report.extend(records)
    if len(parts) == 1:
        return parts[0]
    if not mixed:
        return datasets.concatenate_datasets(parts)
    return datasets.interleave_datasets(parts, probabilities, seed=seed, stopping_strategy="all_exhausted")


def _size(dataset: datasets.Dataset | datasets.IterableDataset, count_bytes: bool) -> dict[str, int]:
    """`documents` and, if asked for, their `bytes` (of UTF-8, all columns); of a stream, of its first documents."""
    if isinstance(dataset, datasets.IterableDataset):
        rows = list(dataset.take(100)) if count_bytes else []
        return {"documents": len(rows), "bytes": sum(len(v.encode()) for row in rows for v in row.values())}
    size = {"documents": len(dataset)}
    if count_bytes:
        tables = dataset.with_format("arrow").iter(1000)
        columns = (column for table in tables for column in table.itercolumns())
        size["bytes"] = sum(pyarrow.compute.sum(pyarrow.compute.binary_length(c)).as_py() for c in columns)
    return size


def _probabilities(weights: list[float], sizes: list[dict]) -> list[float]:
    """Shares of documents that give shares of text, since documents of one source may be longer than another's."""
    shares = [w * size["documents"] / size["bytes"] for w, size in zip(weights, sizes, strict=True)]
    return [share / sum(shares) for share in shares]


def _epochs(probabilities: list[float], sizes: list[dict]) -> list[float]:
    """How often each source is read until all have been."""
    total = max(size["documents"] / p for p, size in zip(probabilities, sizes, strict=True))
    return [p * total / size["documents"] for p, size in zip(probabilities, sizes, strict=True)]


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
    if spec.split_documents is not None:
        manner = sources.parse_options(SplitDocuments, spec.split_documents, "split_documents")
        dataset = split_documents(dataset, wanted[0], manner)
    elif not streaming and not columns:
        dataset = split_single(dataset, wanted[0], spec.name)
    if not streaming and 1 < len(dataset) < _SMALL and held_out_fraction:
        places = [_place(*row.values()) for row in dataset if _is_text(*row.values())]
        held_out_fraction = max(held_out_fraction, math.nextafter(min(places, default=0.0), 1.0))
    held_out = {"train": False, "validation": True, "all": None}[split]
    rule = {"fraction": held_out_fraction, "held_out": held_out}
    progress = {} if streaming else {"desc": f"Selecting the {split} split"}
    dataset = dataset.filter(_in_split, input_columns=wanted, fn_kwargs=rule, **progress)
    if next(iter(dataset), None) is None:
        raise ValueError(
            f"corpus {spec.name!r}: no document in split={split!r} with held_out_fraction={held_out_fraction}; "
            "the corpus is empty or too small for the fraction"
        )
    return dataset


def _in_split(*values, fraction: float, held_out: bool | None) -> bool:
    """Filter: keeps non-blank documents of one split. A pair is hashed as one document."""
    return _is_text(*values) and (held_out is None or (_place(*values) < fraction) == held_out)


def _is_text(*values) -> bool:
    return all(isinstance(v, str) and v.strip() for v in values)


def _place(*values: str) -> float:
    return sources.place("\0".join(values))


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
