"""English and German of the same messages and labels: the user interface of Home Assistant."""

import json
import zipfile
from collections.abc import Iterator

from datasets import Features, Value

from .packages import PackageFile, fetch_package


ARCHIVE = PackageFile(
    name="homeassistant-2026.11.0-py3-none-any.whl",
    sha256="7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7",
    licence="Apache-2.0",
)
FEATURES = Features({"en": Value("string"), "de": Value("string")})


def rows() -> Iterator[dict]:
    """Yields each distinct pair once, in order of first appearance; strings that are not translated are left out."""
    seen = set()
    with zipfile.ZipFile(fetch_package(ARCHIVE)) as wheel:
        names = set(wheel.namelist())
        for english in sorted(n for n in names if n.endswith("/translations/en.json")):
            german = english.removesuffix("en.json") + "de.json"
            if german not in names:
                continue
            translations = dict(_leaves(json.loads(wheel.read(german))))
            for key, text in _leaves(json.loads(wheel.read(english))):
                pair = (text.strip(), translations.get(key, "").strip())
                if all(pair) and pair[0] != pair[1] and pair not in seen:
                    seen.add(pair)
                    yield {"en": pair[0], "de": pair[1]}


def _leaves(tree: dict, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """`(path of keys, string)` of every string in nested mappings."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*prefix, key))
        elif isinstance(value, str):
            yield (*prefix, key), value
