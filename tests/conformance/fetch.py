"""Fetch transformers' own common model tests, of the newest version that hf_llm is tested with.

    python tests/conformance/fetch.py DIRECTORY

leaves them in DIRECTORY/transformers_tests, importable once DIRECTORY is on the path. They come from the source
distribution on the package index, checked by its SHA-256; only its `tests/` is unpacked and nothing of it is kept in
this repository. The distribution leaves some modules out that its tests import; `stand_ins/` fills those gaps.
"""

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path


VERSION = "5.24.0"
SHA256 = "906cb8c3cb2123575e263962586a4d21a979ce97feeb95fe6aaf66fe6ae88bf3"
STAND_INS = Path(__file__).parent / "stand_ins"


def download(directory: Path) -> Path:
    """The source distribution, from `directory` if it is there already; its digest is checked either way."""
    archive = directory / f"transformers-{VERSION}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary=:all:", "--dest", str(directory), f"transformers=={VERSION}"]
        subprocess.run(command, check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        archive.unlink()
        raise SystemExit(f"{archive.name} has SHA-256 {digest}, not the expected {SHA256}; it was removed")
    return archive


def unpack_tests(archive: Path, destination: Path) -> None:
    """Put the files of the archive's `tests/`, and nothing else, into `destination`."""
    prefix = f"transformers-{VERSION}/tests/"
    with tarfile.open(archive) as members:
        for member in members:
            if member.isfile() and member.name.startswith(prefix):
                member.name = member.name.removeprefix(prefix)
                members.extract(member, destination, filter="data")


def main(directory: str) -> None:
    installed = importlib.metadata.version("transformers")
    if installed != VERSION:
        raise SystemExit(f"transformers {installed} is installed; its tests of version {VERSION} say nothing about it")
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    package = root / "transformers_tests"
    shutil.rmtree(package, ignore_errors=True)
    unpack_tests(download(root), package)
    shutil.copytree(STAND_INS, package, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    print(f"transformers {VERSION}: {len(list(package.glob('test_*.py')))} test modules in {package}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
