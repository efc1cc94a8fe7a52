"""Functions of installed Python source, with their docstrings: the raw material of several data sets.

Sources are parsed, never imported. The content follows the installed versions, which `versions_of` names.
"""

import ast
import importlib.metadata
import importlib.util
import platform
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_llm.data import python_stdlib


STDLIB = "stdlib"


@dataclass(frozen=True)
class Function:
    """A function or method.

    Attributes:
        name: as it is called, `Class.method` for a method.
        header: its `def` line or lines, decorators left out.
        docstring: cleaned as `inspect.cleandoc` does.
        body: what follows the docstring, as it stands in the source.
    """

    name: str
    header: str
    docstring: str
    body: str


def functions(packages: Sequence[str] = (STDLIB,)) -> Iterator[Function]:
    """Functions with a docstring and a body, of the standard library ("stdlib") and of installed packages."""
    for text in sources(packages):
        yield from _functions(text)


def sources(packages: Sequence[str]) -> Iterator[str]:
    """Source files as text, sorted by path within each package; files that are no valid Python are left out.

    Raises:
        ValueError: a package is not installed.
    """
    for package in packages:
        if package == STDLIB:
            yield from python_stdlib.modules()
            continue
        root = _folder(package)
        for path in sorted(root.rglob("*.py"), key=lambda path: path.parts):
            if not python_stdlib.EXCLUDED_DIRECTORIES & set(path.relative_to(root).parts[:-1]):
                with tokenize.open(path) as file:
                    yield file.read()


def _folder(package: str) -> Path:
    """Where the source of an installed package is."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"packages: {package!r} is not installed here; legal are {STDLIB!r} and installed packages")
    return Path(spec.submodule_search_locations[0])


def versions_of(default: Sequence[str]) -> Callable[[dict], dict[str, str]]:
    """A function of a data set's options: the versions of the packages that it is taken from."""

    def versions(options: dict) -> dict[str, str]:
        return {package: _version(package) for package in options.get("packages", default)}

    return versions


def _version(package: str) -> str:
    if package == STDLIB:
        return platform.python_version()
    _folder(package)  # says so where there is no such package
    names = importlib.metadata.packages_distributions().get(package)
    return importlib.metadata.version(names[0]) if names else ""


def _functions(text: str) -> Iterator[Function]:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    lines = text.split("\n")  # as the parser counts them: a form feed ends none
    for node, prefix in _definitions(tree, ""):
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2:
            continue
        first, rest = node.body[0], node.body[1:]
        yield Function(
            name=prefix + node.name,
            header="\n".join(lines[node.lineno - 1 : first.lineno - 1]),
            docstring=docstring,
            body="\n".join(lines[first.end_lineno : rest[-1].end_lineno]).strip("\n"),
        )


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Functions at module level and methods at any depth of classes, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child, prefix
