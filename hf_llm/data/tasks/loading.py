"""Opens a labelled data set, wherever it is, and gives one of its splits.

Splits that a source has are taken as they are. What it lacks is taken from its training examples by a hash of their
content, as in `hf_llm.data.corpora`: the split does not depend on order or machine, and copies never straddle it. By
another hash the examples fall into disjoint parts (`TaskSpec.part`), whatever their split.
"""

import difflib
import glob
import hashlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import datasets

from ..packages import cache_dir
from .table import TASKS


SPLITS = ("train", "validation", "test")
# our name -> what other people call such a split
ALIASES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
FILE_FORMATS = {".jsonl": "json", ".json": "json", ".jsonl.gz": "json", ".csv": "csv", ".parquet": "parquet"}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
PART = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class TaskSpec:
    """Which labelled data.

    Attributes:
        name: a key of `TASKS`; a local file, glob (.jsonl, .json, .csv, .parquet) or folder of such files; a dataset's
            name on the Hub.
        config: the Hub dataset's configuration name.
        revision: the Hub dataset's git revision.
        splits: our split -> the source's name for it, e.g. {"validation": "validation_matched"}; or, for local data,
            the file or glob that holds it.
        columns: our column -> the source's, e.g. {"text": "sentence"}; only columns with other names need to be here.
        validation_fraction: share of the training examples that validation takes where the source has no such split.
        test_fraction: the same of test.
        part: "1/2" takes the first of two disjoint halves of every split, "2/3" the second third, ...: what one model
            learns from, another one, that judges it, never sees. The parts are of about equal size.
        group_by: columns by whose content examples are split and parted; default: those of the table, else all
            columns.
        options: of an embedded data set, see the `rows` of its entry in `TASKS`.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    part: str | None = None
    group_by: list[str] | None = None
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"dataset name={self.name!r}: must be a non-empty string; {_legal_names()}")
        held_out = self.validation_fraction + self.test_fraction
        if min(self.validation_fraction, self.test_fraction) < 0 or held_out >= 1:
            raise ValueError(
                f"dataset {self.name!r}: validation_fraction={self.validation_fraction!r} and "
                f"test_fraction={self.test_fraction!r} must be at least 0 and leave something to train on"
            )
        if self.part is not None:
            self.part_bounds()
        if unknown := sorted(set(self.splits) - set(SPLITS)):
            raise ValueError(f"dataset {self.name!r}: splits has {unknown}; legal keys are {', '.join(SPLITS)}")

    def part_bounds(self) -> tuple[float, float]:
        """Where `part` begins and ends, as shares of the whole."""
        match = PART.fullmatch(str(self.part))
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count:
            raise ValueError(f"dataset {self.name!r}: part={self.part!r} must be NUMBER/COUNT, such as 1/2 or 3/3")
        return (number - 1) / count, number / count


def load_task(spec: str | Mapping | TaskSpec, split: str = "train") -> datasets.Dataset:
    """One split of a labelled data set.

    Args:
        spec: a name, path, glob, folder or Hub id; or a mapping with `TaskSpec`'s fields, where options of an embedded
            set may stand beside them: `{name: sentiment-ratings, minimum_intensity: 1.0}`.
        split: "train", "validation" or "test".

    Raises:
        ValueError: unknown name, option, column or split; a source that cannot be read; an empty split.
    """
    spec = parse_task(spec)
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    given = _open(spec)
    existing = _name_of(spec, split, given)
    source = existing or _name_of(spec, "train", given)
    if source is None:
        raise ValueError(f"dataset {spec.name!r}: no split to train on among {list(given)}; map one in `splits`")
    dataset = _rename(spec, given[source])
    if existing is None or split == "train":
        lacking = [s for s in SPLITS[1:] if _name_of(spec, s, given) is None]
        dataset = _select(spec, dataset, _split_bounds(spec, split, lacking), b"hf_llm split", f"the {split} split")
    if spec.part is not None:
        dataset = _select(spec, dataset, spec.part_bounds(), b"hf_llm part", f"part {spec.part}")
    if not len(dataset):
        raise ValueError(
            f"dataset {spec.name!r}: split {split!r} is empty (validation_fraction={spec.validation_fraction}, "
            f"test_fraction={spec.test_fraction}, part={spec.part})"
        )
    return dataset


def parse_task(spec: str | Mapping | TaskSpec) -> TaskSpec:
    """A `TaskSpec` of what a configuration says.

    Raises:
        ValueError: unknown key, the legal ones are named.
    """
    if isinstance(spec, TaskSpec):
        return spec
    if isinstance(spec, str):
        return TaskSpec(spec)
    if not isinstance(spec, Mapping):
        raise ValueError(f"dataset={spec!r}: must be a name or a mapping with a `name`")
    if "name" not in spec:
        raise ValueError(f"dataset={dict(spec)!r}: key `name` is missing")
    own = [f.name for f in fields(TaskSpec)]
    task = TASKS.get(spec["name"])
    options = list(inspect.signature(task.rows).parameters) if task else []
    if unknown := sorted(set(spec) - set(own) - set(options)):
        raise ValueError(
            f"dataset {spec['name']!r}: unknown keys {unknown}; legal keys are {', '.join([*own, *options])}"
        )
    known = {k: v for k, v in spec.items() if k in own}
    return TaskSpec(**{**known, "options": {**known.get("options", {}), **_without(spec, own)}})


def _without(spec: Mapping, keys: list[str]) -> dict:
    return {k: v for k, v in spec.items() if k not in keys}


def _open(spec: TaskSpec) -> dict[str, datasets.Dataset]:
    """All splits that the source has."""
    if spec.name in TASKS:
        return {"train": _embedded(spec)}
    path = Path(spec.name).expanduser()
    if path.is_dir():
        return _read(spec, str(path))
    if files := _local_files(spec.name):
        return _read_files(spec, files)
    if not HUB_ID.fullmatch(spec.name):
        raise ValueError(f"dataset {spec.name!r}: not a known name; {_legal_names(spec.name)}")
    return _read(spec, spec.name, name=spec.config, revision=spec.revision)


def _embedded(spec: TaskSpec) -> datasets.Dataset:
    """An embedded set, built once for each set of options and kept as Arrow files."""
    task = TASKS[spec.name]
    modules = [p for p in sorted(Path(__file__).parent.glob("*.py")) if p.name != "loading.py"]
    code = [p.read_text(encoding="utf-8") for p in modules]
    facts = [spec.options, task.source, task.versions(spec.options), code]
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()
    folder = cache_dir() / "tasks" / f"{spec.name}-{digest}"
    if not folder.is_dir():
        rows = list(task.rows(**spec.options))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch, "dataset")
            columns = {name: [row[name] for row in rows] for name in task.features}
            datasets.Dataset.from_dict(columns, features=task.features).save_to_disk(made)
            try:
                os.replace(made, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    return datasets.load_from_disk(str(folder))


def _local_files(name: str) -> list[str]:
    """Files that a path or glob names, sorted; [] when the name is not a path.

    Raises:
        ValueError: it looks like a path, and there is nothing; or the suffix says nothing.
    """
    found = sorted(p for p in glob.glob(str(Path(name).expanduser()), recursive=True) if Path(p).is_file())
    looks_like_path = any(c in name for c in "*?[\\") or name.startswith((".", "/", "~")) or _file_format(name)
    if not found and looks_like_path:
        raise ValueError(f"dataset {name!r}: no such file, folder or glob")
    if wrong := [p for p in found if _file_format(p) is None]:
        raise ValueError(f"dataset {name!r}: {wrong[0]} is none of {', '.join(FILE_FORMATS)}")
    return found


def _file_format(name: str) -> str | None:
    return next((f for suffix, f in FILE_FORMATS.items() if name.lower().endswith(suffix)), None)


def _read_files(spec: TaskSpec, train: list[str]) -> dict[str, datasets.Dataset]:
    files = {"train": train}
    for split, name in spec.splits.items():
        files[split] = _local_files(name)
        if not files[split]:
            raise ValueError(f"dataset {spec.name!r}: splits.{split}={name!r} not found: no such file or glob")
    kinds = {_file_format(p) for paths in files.values() for p in paths}
    if len(kinds) > 1:
        raise ValueError(f"dataset {spec.name!r}: files of several kinds ({', '.join(sorted(kinds))}); take one kind")
    return _read(spec, kinds.pop(), data_files=files)


def _read(spec: TaskSpec, *args, **options) -> dict[str, datasets.Dataset]:
    try:
        return dict(datasets.load_dataset(*args, **options))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"dataset {spec.name!r}: cannot be read: {reason}; {_legal_names(spec.name)}") from error


def _name_of(spec: TaskSpec, split: str, given: Mapping[str, object]) -> str | None:
    """The source's name of a split, or None if it has none such.

    Raises:
        ValueError: the name that the specification gives is not there.
    """
    chosen = spec.splits.get(split)
    if chosen in given:
        return chosen
    if chosen is not None and split not in given:
        raise ValueError(f"dataset {spec.name!r}: splits.{split}={chosen!r} not found; there are {', '.join(given)}")
    return next((alias for alias in ALIASES[split] if alias in given), None)


def _rename(spec: TaskSpec, dataset: datasets.Dataset) -> datasets.Dataset:
    existing = dataset.column_names
    if missing := sorted(set(spec.columns.values()) - set(existing)):
        raise ValueError(f"dataset {spec.name!r}: columns={missing} not found; its columns are {existing}")
    renamed = {theirs: ours for ours, theirs in spec.columns.items() if theirs != ours}
    in_the_way = [ours for theirs, ours in renamed.items() if ours in existing]
    return dataset.remove_columns(in_the_way).rename_columns(renamed)


def _split_bounds(spec: TaskSpec, split: str, lacking: list[str]) -> tuple[float, float]:
    """Where a split begins and ends, as shares of the whole, if the splits `lacking` are taken from it."""
    bounds, top = {}, 0.0
    for name in lacking:
        share = getattr(spec, f"{name}_fraction")
        bounds[name] = (top, top + share)
        top += share
    return bounds.get(split, (top, 1.0))


def _select(
    spec: TaskSpec, dataset: datasets.Dataset, bounds: tuple[float, float], purpose: bytes, name: str
) -> datasets.Dataset:
    """The examples whose hash, another one for each purpose, is within bounds."""
    group_by = spec.group_by or (TASKS[spec.name].group_by if spec.name in TASKS else dataset.column_names)
    if missing := sorted(set(group_by) - set(dataset.column_names)):
        raise ValueError(
            f"dataset {spec.name!r}: group_by={missing} not found; its columns are {dataset.column_names}"
        )
    rule = {"low": bounds[0], "high": bounds[1], "purpose": purpose}
    return dataset.filter(_within, input_columns=list(group_by), fn_kwargs=rule, desc=f"Selecting {name}")


def _within(*values, low: float, high: float, purpose: bytes) -> bool:
    """Whether the BLAKE2 hash of an example's content, as a number in [0, 1), is within [low, high)."""
    content = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8")
    digest = hashlib.blake2b(content, digest_size=8, person=purpose).digest()
    return low <= int.from_bytes(digest, "big") / 2**64 < high


def _legal_names(name: str = "") -> str:
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}legal are {', '.join(TASKS)}, a local file, glob or folder, or the name of a dataset on the Hub"
