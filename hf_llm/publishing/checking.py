"""`hf-llm check`: whether others can use a checkpoint, as a table of what was tried and what was seen."""

import json
import os
import re
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
import transformers
from huggingface_hub import constants, snapshot_download

from ..interop import InteropError, from_native, to_native
from ..interop.convert import AUTO_CLASSES
from ..interop.loading import load_strictly
from .bare import TOLERANCE, NotApplicable, difference, outcome, some_inputs, within
from .code import foreign_code
from .folder import CHECKS, NOT_PUBLISHED, Folder, read_folder


PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
OPENING = "opening by its own code"  # the row where the rows of the process without hf_llm would be
WIDTH = 240  # letters of what was seen that a table shows
# variables that a process needs to find Python, torch and their libraries, and to use the machine as this one does
PASSED_ON = (
    *("PATH", "PATHEXT", "SYSTEMROOT", "WINDIR", "COMSPEC", "TMP", "TEMP", "TMPDIR", "LANG", "LC_*", "TZ"),
    *("PYTHON*", "VIRTUAL_ENV", "CONDA_*", "LD_*", "DYLD_*", "OMP_*", "MKL_*", "KMP_*", "OPENBLAS_*", "CUDA_*"),
    *("TORCH*", "PYTORCH_*", "TRANSFORMERS_*"),
)
SECRET = re.compile("TOKEN|SECRET|PASS|CREDENTIAL|_KEY")


@dataclass(frozen=True)
class Row:
    """One check: its name, how it went, and what was seen."""

    check: str
    result: str
    seen: str


@dataclass(frozen=True)
class Report:
    """The rows of one checkpoint."""

    source: str
    rows: list[Row]

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.result == FAILED]

    def __str__(self) -> str:
        width = max(len(row.check) for row in self.rows)
        shown = [row.seen if len(row.seen) <= WIDTH else f"{row.seen[:WIDTH]} ..." for row in self.rows]
        lines = [f"{row.check:<{width}}  {row.result:<7}  {seen}" for row, seen in zip(self.rows, shown)]
        counts = [f"{sum(row.result == result for row in self.rows)} {result}" for result in (PASSED, FAILED, SKIPPED)]
        return "\n".join((*lines, f"{self.source}: {', '.join(counts)}"))

    def to_dict(self) -> dict:
        return {
            "source": self.source,
            "passed": not self.failures,
            "rows": [asdict(row) for row in self.rows],
        }


def check(source: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Report:
    """
    Try a checkpoint as its users will.

    Files, code, weights and card are looked at here; every head is opened, and the model used, in a process that has
    no hf_llm and no tokens; and the model is exported and read back by this hf_llm.

    Args:
        source: a folder, or a repository of the Hub, which is then opened by its id.
        revision: of a repository.
        trust_remote_code: run the code that the checkpoint carries even if it is not the installed package's.

    Raises:
        OSError: the repository cannot be reached.
    """
    source = str(source)
    local = Path(source).is_dir()
    path = Path(source if local else snapshot_download(source, revision=revision, ignore_patterns=NOT_PUBLISHED))
    rows = inspect(path)
    failed = {row.check for row in rows if row.result == FAILED}
    if "configuration" in failed:
        return Report(source, rows)
    if "weights" in failed:
        rows += [Row(name, SKIPPED, "the weights cannot be used") for name in (OPENING, "export")]
        return Report(source, rows)
    folder = read_folder(path)
    foreign = None if trust_remote_code else foreign_code(path, folder.config)
    if foreign is not None:
        rows.append(Row(OPENING, SKIPPED, f"the code is run on --trust-remote-code alone: {foreign}"))
    else:  # a repository by its id, out of the cache, at the commit that was looked at
        rows += run_bare(*(([str(path.resolve())], None) if local else ([source], path.name)))[0]
    rows.append(Row("export", *outcome(check_export, folder)))
    return Report(source, rows)


def inspect(path: Path) -> list[Row]:
    """The rows of what can be seen without opening anything."""
    try:
        folder = read_folder(path)
    except ValueError as error:
        return [Row("configuration", FAILED, str(error))]
    described = f"{folder.config['model_type']}, {', '.join(folder.config.get('architectures') or ('no class',))}"
    return [
        Row("configuration", PASSED, described),
        *(Row(name, *outcome(look, folder)) for name, look in CHECKS.items()),
    ]


# ---- the bare process ----------------------------------------------------------------------------------------------


def run_bare(sources: list[str], revision: str | None = None, weights: bool = True) -> list[list[Row]]:
    """The rows of each source, from one process without hf_llm, tokens, network, and code that was fetched before.

    sources: folders, or repositories that are in the cache at `revision`.
    weights: otherwise configurations and classes are tried alone, of folders that have nothing else.

    A process that dies (of memory, say) leaves a failed row where it stopped.
    """
    with tempfile.TemporaryDirectory() as empty:
        written = Path(empty, "rows.jsonl")
        written.touch()
        request = json.dumps({"sources": sources, "revision": revision, "weights": weights, "rows": str(written)})
        environment = bare_environment(Path(empty))
        command = [sys.executable, "-P", str(Path(__file__).with_name("bare.py")), request]
        run = subprocess.run(command, env=environment, cwd=empty, capture_output=True, text=True)
        found = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    rows = {source: [] for source in sources}
    for row in found:
        rows[row.pop("source")].append(Row(**row))
    if run.returncode:
        last = " ".join(run.stderr.split())[-300:]
        where = next((source for source in reversed(sources) if rows[source]), sources[0])
        rows[where].append(Row("process without hf_llm", FAILED, f"ended with exit code {run.returncode}: {last}"))
    return list(rows.values())


def bare_environment(home: Path) -> dict[str, str]:
    """The variables of a process that may run foreign code: what Python and torch need, the Hub's cache, no secrets.

    home: an empty folder, where its home and the Hub's token would be.
    """
    passed = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch(name.upper(), pattern) for pattern in PASSED_ON) and not SECRET.search(name.upper())
    }
    return {
        **passed,
        **dict.fromkeys(("HOME", "USERPROFILE", "HF_HOME"), str(home)),
        "PYTHONUSERBASE": site.getuserbase(),
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_HUB_OFFLINE": "1",
    }


# ---- export --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_export(folder: Folder) -> str:
    """The nearest native family gives the same outputs, and its weights come back to the bit."""
    model_class = getattr(transformers, (folder.config.get("architectures") or [""])[0])
    model = load_strictly(model_class, str(folder.path), dtype=torch.float32).eval()
    try:
        native = to_native(model).eval()
    except InteropError as error:
        reasons = str(error).splitlines()  # the first says that there are some
        raise NotApplicable(f"refused: {reasons[min(1, len(reasons) - 1)]}") from error
    inputs = some_inputs(model.config, AUTO_CLASSES.get(folder.head))
    worst = max(map(difference, _tensors(native(**inputs)), _tensors(model(**inputs))))
    if worst > TOLERANCE:
        raise ValueError(f"{type(native).__name__} differs by {worst:.1e} of the largest output")
    state, again = model.state_dict(), from_native(native).state_dict()
    changed = [name for name, tensor in state.items() if name not in again or not tensor.equal(again[name])]
    if changed or len(again) != len(state):
        raise ValueError(
            f"{type(native).__name__} and back: other weights {changed[:4] or sorted(set(again) - set(state))}"
        )
    return f"{type(native).__name__} ({native.config.model_type}), outputs {within(worst)}; and back to the bit"


def _tensors(output) -> Iterator[torch.Tensor]:
    """The outputs that both sides have under one name."""
    for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
        if name in output:
            yield output[name]
