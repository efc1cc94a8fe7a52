"""The code that a checkpoint carries: whether it is the installed package's, its faults, what it was tested with."""

import ast
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

from .. import models
from ..models.common import VERSION, auto_map
from ..models.table import SOURCES, variants_module


# A file that code has since a fault was mended -> what code without it does.
KNOWN_FAULTS = {
    "compat.py": "generate() is wrong under transformers 5.24, and attention sinks and softcap are dropped when it is "
    "opened from a local folder",
}


def imported_files(folder: Path, entries: Iterable[str]) -> set[str]:
    """`entries`, names of files in `folder`, and all that they import from beside them, as far as it is there."""
    found, left = set(), set(entries)
    while left:
        name = left.pop()
        if name not in found and Path(name).name == name and (folder / name).is_file():
            found.add(name)
            with suppress(UnicodeDecodeError):  # a damaged file
                left |= {f"{module}.py" for module in get_relative_imports(folder / name)}
    return found


def entry_files(targets: dict) -> set[str]:
    """Names of the files that the classes of an `auto_map` are in."""
    return {f"{target.split('.')[0]}.py" for target in targets.values() if isinstance(target, str)}


def stack_of(config: dict) -> str:
    """The stack of a config.json."""
    return config["model_type"].removeprefix("hf_llm_")


def variant_files(config: dict) -> list[str]:
    """Names of the files with variants of its user's own that a checkpoint carries."""
    return [name for name in config.get("variants") or () if re.fullmatch(r"[^\W\d]\w*\.py", str(name))]


def installed_code(config: dict) -> dict[str, bytes]:
    """Name -> contents of the files of hf_llm that this version saves with a model of that configuration."""
    source = Path(models.__file__).parent
    names = imported_files(source, entry_files(auto_map(stack_of(config))))
    code = {name: (source / name).read_bytes() for name in sorted(names)}
    variants = variant_files(config)
    return code | {"variants.py": variants_module(variants).encode()} if variants else code


def differing(folder: Path, config: dict) -> tuple[list[str], list[str]]:
    """Which of the code files are missing from a folder, and which are other than the installed package's."""
    code = installed_code(config)
    missing = [name for name in code if not (folder / name).is_file()]
    altered = [name for name in code if name not in missing and (folder / name).read_bytes() != code[name]]
    return missing, altered


def foreign_variant(folder: Path, config: dict) -> str | None:
    """A file with variants that a checkpoint carries and this process has not imported, or `None`."""
    for name in variant_files(config):
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != SOURCES.get(name):
            return name
    return None


def foreign_code(folder: Path, config: dict) -> str | None:
    """Why opening a checkpoint with `trust_remote_code=True` would run other code than the installed package's."""
    missing, altered = differing(folder, config)
    if missing or altered:
        return f"it is not the installed hf_llm's ({', '.join(altered or missing)})"
    if config.get("auto_map") != auto_map(stack_of(config)):
        return "`auto_map` names other classes than hf_llm's"
    if (name := foreign_variant(folder, config)) is not None:
        return f"it carries {name}, and no such file is imported (--imports)"
    if (folder / "custom_generate").exists():  # run by transformers whenever a model is opened
        return "custom_generate/ is not hf_llm's"
    tokenizer = folder / "tokenizer_config.json"
    try:
        own = tokenizer.is_file() and "auto_map" in json.loads(tokenizer.read_text(encoding="utf-8"))
    except ValueError:
        return "tokenizer_config.json is not JSON"
    return "the tokenizer has code of its own" if own else None


def tested_versions(folder: Path, version: str | None) -> list[str]:
    """What the code of a checkpoint, written by `version` of hf_llm, was tested with, as far as it is known.

    The range of transformers is read from the code, which is not run; those of torch and Python are what the installed
    package asks for, if it is of that version.
    """
    try:
        statements = ast.parse((folder / "compat.py").read_text(encoding="utf-8")).body
    except (OSError, SyntaxError):
        return []
    assigned = {ast.unparse(line.targets[0]): line.value for line in statements if isinstance(line, ast.Assign)}
    if "TESTED_TRANSFORMERS" not in assigned:
        return []
    oldest, newest = ast.literal_eval(assigned["TESTED_TRANSFORMERS"])
    return [f"transformers {oldest} to {newest}", *(required() if version == VERSION else ())]


def required() -> list[str]:
    """The versions of torch and Python that the installed package asks for."""
    try:
        stated = metadata.metadata("hf_llm")
    except metadata.PackageNotFoundError:  # on the path, but not installed
        return []
    torch = [line for line in stated.get_all("Requires-Dist") if line.startswith("torch")]
    return [*torch[:1], f"Python {stated['Requires-Python']}"]
