"""What mkdocs does with these pages beside building them (`hooks:` in mkdocs.yml).

Pages are written to be read in the repository as well, with links to its files. Here README.md becomes the first page,
files that pages link to outside docs/ are part of the site (below `repository/`), and `keys.md` lists the settings of
every recipe as the recipes themselves do.
"""

import ast
import dataclasses
import os
import re
import runpy
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from transformers import TrainingArguments


ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": ROOT / "README.md", "changelog.md": ROOT / "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")  # the target of a link, and its anchor


def place(path: Path) -> str:
    """Where a file of the repository is in the site."""
    pages = {source: name for name, source in PAGES.items()}
    if path in pages:
        return pages[path]
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def linked(path: Path) -> list[Path]:
    """The files that a Markdown file links to. Raises FileNotFoundError for one that is not there."""
    found = [(path.parent / match[1]).resolve() for match in LINK.finditer(path.read_text(encoding="utf-8"))]
    for target in found:
        if not target.exists():
            raise FileNotFoundError(f"{path.relative_to(ROOT)} links to {target}, which is not there")
    return [target for target in found if target.is_file()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, CHANGELOG.md, and what is linked to from a page, or from a page so linked to."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    left = [Path(file.abs_src_path) for file in files.documentation_pages()]
    seen = set(left)
    while left:
        page = left.pop()
        for target in linked(page) if page.suffix == ".md" else ():
            if target in seen:
                continue
            seen.add(target)
            left.append(target)
            if files.get_file_from_path(place(target)) is None:
                files.append(File.generated(config, place(target), abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at places in the site, and fill in the settings."""
    source = Path(page.file.abs_src_path)
    if page.file.src_uri == "keys.md":
        markdown += "\n".join(sections())

    def moved(match: re.Match) -> str:
        target = (source.parent / match[1]).resolve()
        if target.is_dir():  # a folder has no page
            return match[0]
        return os.path.relpath(place(target), Path(page.file.src_uri).parent) + (match[2] or "")

    return LINK.sub(moved, markdown)


def sections() -> list[str]:
    """The keys of each training recipe, as its `--help` prints them, in Markdown; not those of TrainingArguments."""
    common = {f"training.{field.name}" for field in dataclasses.fields(TrainingArguments)}
    lines = []
    for recipe in sorted((ROOT / "recipes").glob("*.py")):
        job = job_of(recipe)
        if job is None:
            continue
        lines += [f"\n## `{recipe.name}`\n", "| key | type, default | |", "|---|---|---|"]
        for entry in job.describe():
            declared, _, text = entry.partition("\n")
            name, _, kind = declared.partition(": ")
            if name not in common:
                about = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(text.split())).replace("|", "\\|")
                lines.append(f"| `{name}` | `{kind}` | {about} |")
    return lines


def job_of(recipe: Path) -> type | None:
    """The job of a training recipe: the last argument of its call `main(__file__, __doc__, ...)`."""
    tree = ast.parse(recipe.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "main"]
    if not calls or len(calls[0].args) != 3:
        return None
    sys.path.insert(0, str(recipe.parent))  # where Python looks when the recipe is launched
    names = runpy.run_path(str(recipe), run_name=recipe.stem)
    sys.path.pop(0)
    return eval(ast.unparse(calls[0].args[2]), names)  # noqa: S307 - `Finetuning`, `ALIGNMENTS["ppo"]`
