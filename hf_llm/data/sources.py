"""Where documents and labelled examples come from: sets by name, local files, datasets on the Hub.

Sets by name are rows of two tables, `CORPORA` and `TASKS`. A module of yours enters its own:

    TASKS["my-reviews"] = Task(rows=read_reviews, features=..., group_by=("text",), licence=..., source=..., about=...)

The recipes' own sets are in `recipes/data`, which is imported where a name is looked up that is not in the tables.
"""

import codecs
import difflib
import functools
import glob
import hashlib
import importlib.util
import inspect
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
import fsspec

from . import python_stdlib


logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# columns of CoNLL-U, where form and upos have the names that tagging reads
CONLL_U = ["id", "words", "lemma", "tags", "xpos", "feats", "head", "deprel", "deps", "misc"]
# suffix -> (datasets builder, its options)
FILE_FORMATS = {
    **dict.fromkeys((".txt", ".md", ".rst", ".py"), ("text", {"encoding_errors": "replace"})),
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), ("json", {})),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".conll": ("conll", {}),
    ".conllu": ("conll", {"comment_prefix": "#", "column_names": CONLL_U}),
}
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")  # suffixes after those; `datasets` unpacks them (.zst: with zstandard)


@dataclass(frozen=True)
class Task:
    """A labelled data set that needs no hub.

    Attributes:
        rows: yields the examples, as dicts; its keyword arguments are options that a data section may set.
        features: columns and their types.
        group_by: columns whose content decides the split: examples that agree in them never straddle it.
        licence: SPDX identifier, or "public-domain".
        source: the package that it comes from.
        about: what an example is.
        versions: what else the content depends on, with these options: the versions of installed sources.
    """

    rows: Callable[..., Iterator[dict]]
    features: datasets.Features
    group_by: tuple[str, ...]
    licence: str
    source: str
    about: str
    versions: Callable[[dict], dict] = lambda options: {}


# name -> a function that yields documents
CORPORA: dict[str, Callable[[], Iterator[str]]] = {"python-stdlib": python_stdlib.documents}
# name -> labelled data set
TASKS: dict[str, Task] = {}


@functools.cache
def import_recipes_data() -> None:
    """Imports `recipes/data` as `recipes_data`: of the running recipe, or of the checkout that this file is in."""
    recipes = [folder for folder in Path(sys.argv[0]).resolve().parents if folder.name == "recipes"]
    for folder in (*recipes, Path(__file__).resolve().parents[2] / "recipes"):
        init = folder / "data" / "__init__.py"
        if init.is_file():
            spec = importlib.util.spec_from_file_location("recipes_data", init)
            sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return


def named(name: str, *tables: dict) -> Callable | Task | None:
    """The row of the first of the tables that has this name."""
    if not any(name in table for table in tables):
        import_recipes_data()
    return next((table[name] for table in tables if name in table), None)


def legal_names(name: str, *tables: dict) -> str:
    """For an error message: what may be written in place of an unknown name."""
    import_recipes_data()
    known = [key for table in tables for key in table]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    legal = ", ".join([*known, "a local file, folder or glob"])
    return f"{hint}legal are {legal}, or the name of a dataset on the Hub"


def parse_spec(cls: type, spec: object, noun: str, options: Callable[[str], list[str]] = lambda name: []):
    """An instance of a dataclass with a field `name` from a name or a mapping, as settings have it.

    Args:
        noun: "corpus" or "dataset", for messages.
        options: name -> further keys, which become the field `options`.

    Raises:
        ValueError: neither, no name, or an unknown key; the legal ones are named.
    """
    if isinstance(spec, cls):
        return spec
    if isinstance(spec, str):
        return cls(spec)
    if not isinstance(spec, Mapping):
        raise ValueError(f"{noun}={spec!r}: must be a name, or a mapping with a `name`")
    if "name" not in spec:
        raise ValueError(f"{noun}={dict(spec)!r}: key `name` is missing")
    own, further = [f.name for f in fields(cls)], options(spec["name"])
    if unknown := [key for key in spec if key not in own and key not in further]:
        legal = ", ".join([*own, *further])
        raise ValueError(f"{noun} {spec['name']!r}: unknown keys {sorted(unknown)}; legal keys are {legal}")
    values = {key: value for key, value in spec.items() if key in own}
    if beside := {key: value for key, value in spec.items() if key not in own}:
        values["options"] = {**values.get("options", {}), **beside}
    return cls(**values)


def parse_options(cls: type, options: object, where: str):
    """An instance of a dataclass from a mapping of its fields. Raises ValueError, which names the legal ones."""
    legal = [f.name for f in fields(cls)]
    if not isinstance(options, Mapping) or (unknown := [key for key in options if key not in legal]):
        wrong = options if not isinstance(options, Mapping) else unknown
        raise ValueError(f"{where}: {wrong!r}; expected a mapping with the keys {', '.join(legal)}")
    return cls(**options)


def local_files(name: str, noun: str) -> list[str]:
    """Files that a path or glob names, in the order of their paths; [] when the name is not a path.

    A folder stands for all files below it that have a known suffix.

    Raises:
        ValueError: it looks like a path, and there is nothing.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = [str(p) for p in path.rglob("*") if p.is_file() and _file_format(p.name)]
        if not found:
            raise ValueError(f"{noun} {name!r}: no files with suffix {', '.join(FILE_FORMATS)} in this folder")
    else:
        found = [p for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
        found = found or [str(path)] * path.is_file()  # a file's own name may look like a pattern
        looks_like_path = any(c in name for c in "*?[\\") or name.startswith((".", "/", "~")) or _file_format(name)
        if not found and looks_like_path:
            raise ValueError(f"{noun} {name!r}: no such file, folder or glob")
    return sorted(found, key=lambda file: Path(file).as_posix())  # alike on Windows, with its other separator


def _file_format(name: str) -> tuple[str, dict] | None:
    name = name.lower()
    name = name.removesuffix(next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), ""))
    return FILE_FORMATS.get(Path(name).suffix)


def read_files(
    name: str,
    noun: str,
    files: dict[str, list[str]],
    streaming: bool = False,
    text_by: str = "document",
    columns: list[str] | None = None,
) -> dict:
    """Local files as data sets, by split. Files of several kinds are read kind by kind, one after the other.

    Args:
        text_by: what a row of a text file is, a "document" (the whole file) or a "line".
        columns: are read, and need be alike in all files; the others may differ. None reads every column.

    Raises:
        ValueError: files of an unknown kind, without a byte, or that cannot be read, in which case the file is named.
    """
    paths = [path for several in files.values() for path in several]
    if unknown := [path for path in paths if _file_format(path) is None]:
        raise ValueError(
            f"{noun} {name!r}: {unknown[0]} is of no known kind; legal suffixes are {', '.join(FILE_FORMATS)}, and "
            f"{', '.join(COMPRESSIONS)} after these"
        )
    if not any(Path(path).stat().st_size for path in paths):
        raise ValueError(f"{noun} {name!r}: empty, no file has a single byte")
    found: dict[str, list] = {split: [] for split in files}
    kinds = {path: _reader(path, f"{noun} {name!r}") for path in paths}
    for kind in [kind for i, kind in enumerate(kinds.values()) if kind not in [*kinds.values()][:i]]:
        builder, options = kind
        if builder == "text":
            options = {**options, "sample_by": text_by}
        some = {split: [path for path in several if kinds[path] == kind] for split, several in files.items()}
        some = {split: several for split, several in some.items() if several}
        load = functools.partial(datasets.load_dataset, builder, streaming=streaming, **options)
        try:
            if streaming and builder == "json" and columns:  # whose columns are those of the first file, else
                raise ValueError("read one by one")
            for split, dataset in load(data_files=some).items():
                found[split].append(_only(dataset, columns))
        except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as error:
            for split, path in ((split, path) for split, several in some.items() for path in several):
                try:  # one by one: other columns may differ, or else it shows which file it is
                    dataset = _only(load(data_files=path, split="train"), columns)
                except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, StopIteration) as own:
                    reason = (_bad_line(path) if builder == "json" else None) or own.__cause__ or own
                    raise ValueError(f"{noun} {name!r}: cannot read {path} as {builder}: {reason}") from own
                if columns is None:
                    continue
                found[split].append(dataset)
            if columns is None:
                raise ValueError(f"{noun} {name!r}: its files differ in their columns: {error.__cause__}") from error
    return {
        split: parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        for split, parts in found.items()
        if parts
    }


def _reader(path: str, where: str) -> tuple[str, dict]:
    """The builder of `datasets` for a file, and its options: those of its suffix, and what its first bytes tell of
    encoding and columns.

    Raises:
        ValueError: another encoding than UTF-8, or UTF-16 of JSON.
    """
    builder, options = _file_format(path)
    if builder in ("parquet", "arrow"):
        return builder, options
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            head = file.read(1 << 16)
    except (OSError, EOFError, ValueError) as error:  # a damaged archive, or no library that unpacks it
        raise ValueError(f"{where}: cannot read {path}: {error}") from error
    encoding = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")
    if (encoding == "utf-8" and b"\0" in head) or (builder == "json" and encoding == "utf-16"):
        raise ValueError(f"{where}: {path} is in UTF-16, or no text; save it as UTF-8")
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError as error:
        if builder != "text":
            raise ValueError(f"{where}: {path} is not in UTF-8: {error.reason} at byte {error.start}") from error
        logger.warning("%s: %s is not in UTF-8; U+FFFD stands for its bytes that are not", where, path)
        return builder, options
    if builder == "conll" and "column_names" not in options:
        rows = (line.split() for line in text.splitlines() if line.strip() and not line.startswith("-DOCSTART-"))
        between = range(2, len(next(rows, [])))
        options = {**options, "column_names": ["words", *(f"column_{i}" for i in between), "tags"]}
    return builder, options if encoding == "utf-8" or builder == "json" else {**options, "encoding": encoding}


def _bad_line(path: str) -> str | None:
    """What is wrong with the first line of a file that is not JSON; None of a file that has no JSON by lines."""
    with fsspec.open(path, "rt", compression="infer", encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                return f"line {number}: {error.msg} at character {error.colno}" if number > 1 else None
            if not isinstance(row, dict):
                return f"line {number} is no object"
    return None


def _only(dataset: datasets.Dataset | datasets.IterableDataset, columns: list[str] | None):
    """The data set with the given columns alone, if it has them all. A stream is first read here."""
    if not columns or not set(columns) <= set(column_names(dataset)):
        return dataset
    dataset = dataset.select_columns(columns)
    for name in columns:
        if (dataset.features or {}).get(name) == datasets.Value("large_string"):  # which pandas makes of CSV
            dataset = dataset.cast_column(name, datasets.Value("string"))
    return dataset


def read_hub(name: str, noun: str, /, *tables: dict, **options) -> dict | datasets.Dataset | datasets.IterableDataset:
    """A dataset on the Hub, or a local folder with one split in each file; all splits unless the options name one.

    Raises:
        ValueError: no such dataset; the names in the tables are named.
    """
    if not Path(name).is_dir() and not HUB_ID.fullmatch(name):
        raise ValueError(f"{noun} {name!r}: not a known name; {legal_names(name, *tables)}")
    try:
        return datasets.load_dataset(name, **options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = error.__cause__ or error
        raise ValueError(
            f"{noun} {name!r}: not found, or cannot be read: {reason}; {legal_names(name, *tables)}"
        ) from error


def column_names(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Names of the columns; of a stream without declared features, those of its first example."""
    return list(dataset.column_names or next(iter(dataset), {}))


def place(content: str, purpose: bytes = b"hf_llm split") -> float:
    """A number in [0, 1) from the BLAKE2 hash of an example's content, another one for each purpose.

    Splits are ranges of it: they do not depend on order or machine, and copies of an example never straddle them.
    """
    digest = hashlib.blake2b(content.encode("utf-8"), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big") / 2**64


def cache_dir() -> Path:
    """Where fetched files, and what is made of them, are kept: `hf_llm` in the cache of `datasets`."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_llm"


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes a folder unless it is there: `make` fills an empty one, which takes its place whole or not at all."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        make(made)
        try:
            os.replace(made, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def code_of(thing: Callable) -> list[str]:
    """The source of a function's or class's module, and of the modules beside it in a package: for a cache's key."""
    module = inspect.getmodule(thing)
    if getattr(module, "__file__", None) is None:  # a notebook
        return [inspect.getsource(thing)]
    path = Path(module.__file__)
    modules = sorted(path.parent.glob("*.py")) if module.__package__ else [path]
    return [file.read_text(encoding="utf-8") for file in modules]
