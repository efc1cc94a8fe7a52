"""Data that lives in packages of Debian: fetched once with apt-get, checked by SHA-256, cached, never installed."""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..packages import cache_dir, verify_file


@dataclass(frozen=True)
class DebianFile:
    """One package of Debian.

    Attributes:
        package: as `name=version`.
        name: the file.
        sha256: its digest, in hexadecimal.
        licence: SPDX identifier of what is used of it, or "public-domain".
    """

    package: str
    name: str
    sha256: str
    licence: str


def fetch_debian(file: DebianFile) -> Path:
    """Path of the verified package in the cache; it is fetched if it is not there.

    Raises:
        ValueError: it is neither cached nor can be fetched, or is not the expected one.
    """
    path = cache_dir() / file.name
    if not path.is_file():
        _download(file, path)
    verify_file(path, file.sha256)
    return path


def _download(file: DebianFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    advice = f"Connect once, or put {file.name} (sha256 {file.sha256}) at {path}"
    if shutil.which("apt-get") is None:
        raise ValueError(f"{file.name} comes from Debian, and there is no apt-get here. {advice}")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = ["apt-get", "download", "--quiet", file.package]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
        downloaded = Path(folder, file.name)
        if result.returncode or not downloaded.is_file():
            reason = (result.stderr.strip().splitlines() or ["apt-get reported nothing"])[-1]
            raise ValueError(f"could not fetch {file.package} with apt-get ({reason}). {advice}")
        os.replace(downloaded, path)


def data_archive(package: Path) -> tarfile.TarFile:
    """The files of a `.deb`: the member `data.tar.*` of an `ar` archive (deb(5))."""
    content, position = package.read_bytes(), 8  # after the magic
    while position < len(content):
        name = content[position : position + 16].decode().strip()
        size = int(content[position + 48 : position + 58])
        position += 60
        if name.startswith("data.tar"):
            return tarfile.open(fileobj=io.BytesIO(content[position : position + size]))
        position += size + size % 2  # members begin at even positions
    raise ValueError(f"{package} has no member data.tar")
