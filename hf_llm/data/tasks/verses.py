"""English and Spanish of the same verses: the King James Version and the Reina-Valera of 1909, in the public domain.

Both are modules of the SWORD project in its format zText with the same versification, so that verse n of one is
verse n of the other. Where the translators divided the text otherwise (a few hundred verses), a pair is only in part
a translation.
"""

import re
import struct
import tarfile
import zlib
from collections.abc import Iterator

from datasets import Features, Value

from .debian import DebianFile, data_archive, fetch_debian


# language -> (package, folder of the module)
MODULES = {
    "en": (
        DebianFile(
            package="sword-text-kjv=14.3-1",
            name="sword-text-kjv_14.3-1_all.deb",
            sha256="9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57",
            licence="public-domain",
        ),
        "./usr/share/sword/modules/texts/ztext/engKJV2006eb",
    ),
    "es": (
        DebianFile(
            package="sword-text-sparv=2.60-1",
            name="sword-text-sparv_2.60-1_all.deb",
            sha256="5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
            licence="public-domain",
        ),
        "./usr/share/sword/modules/texts/ztext/spaRV1909eb",
    ),
}
FEATURES = Features({"en": Value("string"), "es": Value("string")})

_MARKUP = re.compile(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>|<[^>]+>", re.DOTALL)


def rows() -> Iterator[dict]:
    """Yields the verses in order, without headings, notes and paragraph signs; en, es."""
    languages = []
    for package, folder in MODULES.values():
        with data_archive(fetch_debian(package)) as archive:
            languages.append([plain_text(e) for part in ("ot", "nt") for e in read_ztext(archive, f"{folder}/{part}")])
    for texts in zip(*languages, strict=True):
        if all(texts):  # entries of headings are empty by now
            yield dict(zip(MODULES, texts, strict=True))


def read_ztext(archive: tarfile.TarFile, stem: str) -> Iterator[str]:
    """All entries of one testament of a SWORD zText module, headings included, in the order of the versification.

    `.bzs` says where each compressed block lies in `.bzz`: offset, size, size unpacked (uint32, little endian).
    `.bzv` says where each entry lies: block, offset in the unpacked block (uint32), length (uint16).
    """
    block_index, entry_index, compressed = (archive.extractfile(f"{stem}.bz{kind}").read() for kind in "svz")
    blocks = [
        zlib.decompress(compressed[start : start + size]) if size else b""
        for start, size, _ in struct.iter_unpack("<III", block_index)
    ]
    for block, start, length in struct.iter_unpack("<IIH", entry_index):
        yield blocks[block][start : start + length].decode("utf-8") if length else ""


def plain_text(osis: str) -> str:
    """The text of a verse in OSIS markup: no tags, notes and titles, single spaces."""
    return " ".join(_MARKUP.sub("", osis).replace("¶", " ").split())
