"""The `python-stdlib` corpus: source and prose that every Python installation already has.

A document is one module of the running interpreter's standard library, or one topic of `pydoc_data.topics` (the
language reference). The generated character tables of `encodings` are left out: they are copies of each other but for
a few lines, so any split would have the same tables on both sides. Nothing is downloaded. The text is the same for
every run of one Python release; it differs between releases. Licence: PSF-2.0.
"""

import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path


EXCLUDED_DIRECTORIES = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}


def documents() -> Iterator[str]:
    """Yields every module (sorted by path), then every topic (sorted by name).

    Raises:
        ValueError: the interpreter has no standard library as source files (a zipped or frozen one).
    """
    yield from modules()
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def modules() -> Iterator[str]:
    """Yields the source of every module, sorted by path.

    Raises:
        ValueError: the interpreter has no standard library as source files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = (path for path in root.rglob("*.py") if _is_source(path.relative_to(root)))
    paths = sorted(found, key=lambda path: path.parts)  # the same order on Windows
    if not paths:
        raise ValueError(f"corpus 'python-stdlib': no .py files under {root}; name another corpus, e.g. a local path")
    for path in paths:
        with tokenize.open(path) as file:  # honours the coding cookie
            text = file.read()
        if not (path.parent.name == "encodings" and "decoding_table" in text):
            yield text


def _is_source(relative: Path) -> bool:
    """Whether a module is part of the corpus: no tests, no third-party code, no build record of this machine."""
    if EXCLUDED_DIRECTORIES & set(relative.parts[:-1]) or relative.name.startswith("_sysconfigdata"):
        return False
    return relative.as_posix() != "pydoc_data/topics.py"  # its topics are documents of their own
