"""A checkpoint in two forms, each on a branch of its own: the native one, which needs no remote code, and ours."""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

from transformers import AutoConfig

from ..interop import InteropError, nearest_family
from ..interop.convert import AUTO_CLASSES
from ..interop.folders import export_folder
from .folder import Folder, published_files, read_folder


# Where the native form is -> the branches of the native form and of ours.
BRANCHES = {"main": ("main", "hf_llm"), "branch": ("native", "main")}
SHOWN = ("*.md", "*.png", "*.jpg", "*.svg", "LICENSE*")  # what belongs to the card, whatever the form
START, END = "<!-- two forms -->", "<!-- end of two forms -->"


def require_native(path: Path) -> None:
    """Raise ValueError, which names the fields, if no native family expresses the model of a checkpoint exactly."""
    folder = read_folder(path)
    try:
        nearest_family(AutoConfig.from_pretrained(path), folder.head)
    except InteropError as error:
        raise ValueError(f"{path} has no native form. {error}") from error


def write_native(path: Path, destination: Path) -> str:
    """Write the native form of a checkpoint, with tokenizer and what its card shows. Returns the name of its class."""
    model = export_folder(str(path), destination)
    for name in published_files(path):
        if "/" not in name and any(fnmatch(name, pattern) for pattern in SHOWN):
            shutil.copyfile(path / name, destination / name)
    return type(model).__name__


def card_of_two_forms(folder: Folder, repo_id: str, native: str, native_class: str) -> str:
    """The card of a checkpoint, saying how to open either form. `native`: a key of `BRANCHES`."""
    auto = AUTO_CLASSES[folder.head]
    ours = folder.config["architectures"][0]

    def opening(branch: str, *arguments: str) -> str:
        arguments = (f'"{repo_id}"', *(() if branch == "main" else (f'revision="{branch}"',)), *arguments)
        return f"`{auto}.from_pretrained({', '.join(arguments)})`"

    native_branch, our_branch = BRANCHES[native]
    section = f"""{START}
## Two forms

The same weights are on two branches:

| branch | form | to open it |
|---|---|---|
| `{native_branch}` | transformers' own `{native_class}`, without remote code | {opening(native_branch)} |
| `{our_branch}` | `{ours}`, with the code of hf_llm | {opening(our_branch, "trust_remote_code=True")} |
{END}
"""
    card = (folder.path / "README.md").read_text(encoding="utf-8")
    card = re.sub(f"{START}.*?{END}\n+", "", card, flags=re.DOTALL)
    head, first_section, rest = card.partition("\n## ")
    return f"{head.rstrip()}\n\n{section}{first_section}{rest}"
