"""Labelled data sets by one string: embedded ones, local files and folders, datasets on the Hub; one of their splits.

Splits that a source has are taken as they are. What it lacks is taken from its training examples by a hash of their
content, as in `hf_llm.data.corpora`: the split does not depend on order or machine, and copies never straddle it. By
another hash the examples fall into disjoint parts (`TaskSpec.part`), whatever their split.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from . import sources
from .sources import TASKS, Task, named


__all__ = ["SPLITS", "TASKS", "Task", "TaskSpec", "load_task", "parse_task"]

SPLITS = ("train", "validation", "test")
# our name -> what other people call such a split
ALIASES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
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
            raise ValueError(
                f"dataset name={self.name!r}: must be a non-empty string; {sources.legal_names('', TASKS)}"
            )
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
        split: "train", "validation", "test", or "all", every example of the source.

    Raises:
        ValueError: unknown name, option, column or split; a source that cannot be read; an empty split.
    """
    spec = parse_task(spec)
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}, all")
    given = _open(spec)
    if split == "all":
        return datasets.concatenate_datasets([_rename(spec, examples) for examples in given.values()])
    theirs = {name: _name_of(spec, name, given) for name in SPLITS}
    source = theirs[split] or theirs["train"]
    if source is None:
        raise ValueError(f"dataset {spec.name!r}: no split to train on among {list(given)}; map one in `splits`")
    dataset = _rename(spec, given[source])
    if theirs[split] is None or split == "train":
        lacking = {name: getattr(spec, f"{name}_fraction") for name in SPLITS[1:] if theirs[name] is None}
        dataset = _select(spec, dataset, _split_bounds(split, lacking), b"hf_llm split", f"the {split} split")
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

    def options(name: str) -> list[str]:
        task = named(name, TASKS)
        return list(inspect.signature(task.rows).parameters) if task else []

    return sources.parse_spec(TaskSpec, spec, "dataset", options)


def _open(spec: TaskSpec) -> dict[str, datasets.Dataset]:
    """All splits that the source has."""
    if task := named(spec.name, TASKS):
        return {"train": _embedded(spec, task)}
    if not Path(spec.name).expanduser().is_dir() and (train := sources.local_files(spec.name, "dataset")):
        files = {"train": train}
        for split, name in spec.splits.items():
            files[split] = sources.local_files(name, f"dataset {spec.name!r}: splits.{split}")
            if not files[split]:
                raise ValueError(f"dataset {spec.name!r}: splits.{split}={name!r} not found: no such file or glob")
        return sources.read_files(spec.name, "dataset", files)
    name = str(Path(spec.name).expanduser()) if spec.name.startswith("~") else spec.name
    return dict(sources.read_hub(name, "dataset", TASKS, name=spec.config, revision=spec.revision))


def _embedded(spec: TaskSpec, task: Task) -> datasets.Dataset:
    """An embedded set, built once for each set of options and kept as Arrow files."""
    facts = [spec.options, task.source, task.versions(spec.options), sources.code_of(task.rows)]
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()

    def make(folder: Path) -> None:
        rows = list(task.rows(**spec.options))
        columns = {name: [row[name] for row in rows] for name in task.features}
        datasets.Dataset.from_dict(columns, features=task.features).save_to_disk(folder)

    folder = sources.cache_dir() / "tasks" / f"{spec.name}-{digest}"
    sources.make_once(folder, make)
    return datasets.load_from_disk(str(folder))


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


def _split_bounds(split: str, lacking: dict[str, float]) -> tuple[float, float]:
    """Where a split begins and ends, as shares of the whole, if splits of these shares are taken from it."""
    top = 0.0
    for name, share in lacking.items():
        if name == split:
            return top, top + share
        top += share
    return top, 1.0


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
    return low <= sources.place(json.dumps(values, sort_keys=True, ensure_ascii=False, default=str), purpose) < high
