"""Corpora by one string: an embedded corpus or the texts of an embedded labelled data set, a local path or glob, or a
dataset on the Hub; weighted mixtures of them.

Every corpus comes out as a `datasets.Dataset` (or `IterableDataset`) of documents with a `text` column, split into
`train` and `validation` by a hash of each document's content: the split does not depend on order, on the rest of the
corpus or on the machine, and two copies of a document never straddle it.
"""

import difflib
import glob
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import datasets

from . import python_stdlib, shakespeare
from .tasks import TASKS, load_task


CORPORA = {"python-stdlib": python_stdlib.documents, "shakespeare": shakespeare.documents}
SPLITS = ("train", "validation")
# suffix -> (datasets builder, its options)
FILE_FORMATS = {
    **dict.fromkeys((".txt", ".md", ".rst", ".py"), ("text", {"sample_by": "document", "encoding_errors": "replace"})),
    **dict.fromkeys((".jsonl", ".json", ".jsonl.gz"), ("json", {})),
    ".parquet": ("parquet", {}),
}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
        part: of a labelled set, "1/2" or the like, as in [`hf_llm.data.tasks.loading.TaskSpec`].
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
        if self.part is not None and self.name not in TASKS:
            raise ValueError(f"corpus {self.name!r}: part={self.part!r} is for labelled sets: {', '.join(TASKS)}")
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"corpus name={self.name!r}: must be a non-empty string; {_legal_names()}")
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
    specs = [_parse_spec(s) for s in (spec if is_list else [spec])]
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


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: its BLAKE2 hash, as a number in [0, 1), is below `fraction`."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=b"hf_llm split").digest()
    return int.from_bytes(digest, "big") / 2**64 < fraction


def _parse_spec(spec) -> CorpusSpec:
    if isinstance(spec, CorpusSpec):
        return spec
    if isinstance(spec, str):
        return CorpusSpec(spec)
    if not isinstance(spec, Mapping):
        raise ValueError(f"corpus={spec!r}: must be a name, a mapping with a `name`, or a list of those")
    legal = [f.name for f in fields(CorpusSpec)]
    if unknown := sorted(set(spec) - set(legal)):
        raise ValueError(f"corpus {spec.get('name')!r}: unknown keys {unknown}; legal keys are {', '.join(legal)}")
    if "name" not in spec:
        raise ValueError(f"corpus={dict(spec)!r}: key `name` is missing")
    return CorpusSpec(**spec)


def _load_split(spec, split, held_out_fraction, streaming, columns):
    """One source's documents of one split, with the wanted columns only; never empty."""
    dataset = _open(spec, streaming)
    wanted = list(columns or [spec.text_column])
    existing = _column_names(dataset)
    if missing := [c for c in wanted if c not in existing]:
        field = "columns" if columns else "text_column"
        raise ValueError(f"corpus {spec.name!r}: {field}={missing} not found; its columns are {existing}")
    dataset = dataset.select_columns(wanted)
    if not columns and spec.text_column != "text":
        dataset = dataset.rename_column(spec.text_column, "text")
        wanted = ["text"]
    rule = {"columns": wanted, "fraction": held_out_fraction, "held_out": split == "validation"}
    progress = {} if streaming else {"desc": f"Selecting the {split} split"}
    dataset = dataset.filter(_in_split, input_columns=wanted, fn_kwargs=rule, **progress)
    if next(iter(dataset), None) is None:
        raise ValueError(
            f"corpus {spec.name!r}: no document in split={split!r} with held_out_fraction={held_out_fraction}; "
            "the corpus is empty or too small for the fraction"
        )
    return dataset


def _in_split(*values, columns, fraction, held_out) -> bool:
    """Filter: keeps non-blank documents of one split. A pair is hashed as one document."""
    if len(values) != len(columns) or not all(isinstance(v, str) and v.strip() for v in values):
        return False
    return is_held_out("\0".join(values), fraction) == held_out


def _column_names(dataset) -> list[str]:
    """Names of the columns; of a stream without declared features, those of its first example."""
    return list(dataset.column_names or next(iter(dataset), {}))


def _open(spec: CorpusSpec, streaming: bool):
    """The whole source, all columns, before any split."""
    if spec.name in CORPORA:
        documents = {"text": list(CORPORA[spec.name]())}
        dataset = datasets.Dataset.from_dict(documents)
        return dataset.to_iterable_dataset() if streaming else dataset
    if spec.name in TASKS:
        dataset = _as_text(load_task({"name": spec.name, "part": spec.part}, "train"), spec.text_column)
        return dataset.to_iterable_dataset() if streaming else dataset
    if files := _local_files(spec.name):
        return _open_files(spec, files, streaming)
    return _open_hub(spec, streaming)


def _as_text(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """The data set, with text in a column where it had conversations (lists of messages with `content`)."""
    if not isinstance(dataset.features.get(column), datasets.List):
        return dataset
    texts = ["\n".join(message["content"] for message in messages) for messages in dataset[column]]
    return dataset.remove_columns(column).add_column(column, texts)


def _local_files(name: str) -> list[str]:
    """Files that a path or glob names, sorted; [] when the name is not a path.

    A folder stands for all files below it that have a known suffix.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = [str(p) for p in path.rglob("*") if p.is_file() and _file_format(p.name)]
        if not found:
            raise ValueError(f"corpus {name!r}: no files with suffix {', '.join(FILE_FORMATS)} in this folder")
        return _in_order(found)
    if path.is_file():
        return [str(path)]
    found = [p for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    looks_like_path = any(c in name for c in "*?[\\") or name.startswith((".", "/", "~")) or _file_format(name)
    if not found and looks_like_path:
        raise ValueError(f"corpus {name!r}: no such file, folder or glob")
    return _in_order(found)


def _in_order(files: list[str]) -> list[str]:
    """Sorted alike on every machine; Windows has another separator."""
    return sorted(files, key=lambda file: Path(file).as_posix())


def _file_format(name: str) -> tuple[str, dict] | None:
    return next((f for suffix, f in FILE_FORMATS.items() if name.lower().endswith(suffix)), None)


def _open_files(spec: CorpusSpec, files: list[str], streaming: bool):
    formats = {_file_format(f) and _file_format(f)[0] for f in files}
    if None in formats or len(formats) > 1:
        kinds = sorted({Path(f).suffix for f in files})
        raise ValueError(
            f"corpus {spec.name!r}: files with suffixes {kinds}; all must be of one kind, text (.txt, .md, .rst, "
            ".py), JSON lines (.jsonl, .json) or .parquet; name the kinds apart as a mixture"
        )
    builder, options = _file_format(files[0])
    try:
        dataset = datasets.load_dataset(builder, data_files=files, split="train", streaming=streaming, **options)
        _column_names(dataset)  # a stream is first read here
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as error:
        raise ValueError(f"corpus {spec.name!r}: cannot be read as {builder}: {error.__cause__ or error}") from error
    return dataset


def _open_hub(spec: CorpusSpec, streaming: bool):
    if not HUB_ID.fullmatch(spec.name):
        raise ValueError(f"corpus {spec.name!r}: not a known name; {_legal_names(spec.name)}")
    try:
        return datasets.load_dataset(
            spec.name, spec.config, split=spec.hub_split, revision=spec.revision, streaming=streaming
        )
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"corpus {spec.name!r}: not found; {_legal_names(spec.name)}. The Hub says: {error}"
        ) from error


def _legal_names(name: str = "") -> str:
    near = difflib.get_close_matches(name, [*CORPORA, *TASKS], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"{hint}legal are {', '.join([*CORPORA, *TASKS])}, a local path or glob, or the name of a dataset on the Hub"
    )
