"""Variants from outside: a user's files that add entries to the package's tables (see docs/your_own_variant.md)."""

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import models
from .models.checks import TABLES


PACKAGE = models.__name__


def import_variants(paths: str | Path | Iterable[str | Path]) -> None:
    """
    Import files that add entries to the tables (`ATTENTIONS`, `NORMS`, ...) or register models with transformers.

    Each becomes a module beside those of `hf_llm.models`, so that a file out of a checkpoint, whose imports are
    relative, can be imported as well. A file that is already imported is not run again.

    Args:
        paths: of Python files; one, or several.

    Raises:
        ValueError: no such file, a name that is taken or is no module's, or an import that a checkpoint could not
            carry.
    """
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        _import_file(Path(path).resolve())


def _import_file(path: Path) -> None:
    name = f"{PACKAGE}.{path.stem}"
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"imports: {path} is no Python file")
    if not path.stem.isidentifier() or (Path(models.__file__).parent / path.name).exists():
        raise ValueError(f"imports: {path} needs another name: {path.stem!r} is hf_llm's own, or no module's name")
    text = path.read_text(encoding="utf-8")
    if name in sys.modules:
        known = sys.modules[name].__loader__.get_data(sys.modules[name].__file__).decode()
        if Path(sys.modules[name].__file__) != path and known != text:
            raise ValueError(f"imports: {path} has the name of {sys.modules[name].__file__}, which is another file")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    setattr(models, path.stem, module)
    if any(path.name in table.files.values() for table in TABLES):
        for line, imported in _not_carried(text, path.parent):
            raise ValueError(
                f"{path}, line {line}: a checkpoint carries this file, and hf_llm.models, but not {imported!r}. "
                "Keep to `from hf_llm.models.MODULE import NAME` and installed packages; objectives, optimizers, "
                "schedules and families go into a file of their own."
            )


def _not_carried(text: str, folder: Path) -> Iterator[tuple[int, str]]:
    """The imports, by line, that a checkpoint does not carry: other parts of hf_llm, and the file's neighbours."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            name = f"{PACKAGE}.{node.module}" if node.level else node.module
            carried = name.startswith(f"{PACKAGE}.") and importlib.util.find_spec(name) is not None
            names = [] if carried else [name]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top = name.split(".")[0]
            if top == "hf_llm" or (folder / f"{top}.py").is_file():
                yield node.lineno, name
