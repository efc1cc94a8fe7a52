"""Texts and dictionaries of the SWORD project, in the public domain, from packages of Debian.

Texts name the word of the original behind a translated one by its number in Strong's dictionaries of the Hebrew and
Greek words of the Bible (1890), such as H0085.
"""

import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from .packages import PackageFile, fetch_package


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


def _module(name: str, sha256: str, stem: str) -> tuple[PackageFile, str]:
    return PackageFile(name, sha256, "public-domain"), f"./usr/share/sword/modules/{stem}"


# language -> (package, folder of the module)
MODULES = {
    "en": _module(
        "sword-text-kjv_14.3-1_all.deb",
        "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57",
        "texts/ztext/engKJV2006eb",
    ),
    "es": _module(
        "sword-text-sparv_2.60-1_all.deb",
        "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
        "texts/ztext/spaRV1909eb",
    ),
}
# letter of the numbers -> (package, stem of the module's files)
DICTIONARIES = {
    "H": _module(
        "sword-dict-strongs-hebrew_3.0-1_all.deb",
        "614e272f6a4153a48cc9893f67d342564de98be23d824e7f8bc7678ca4938cfa",
        "lexdict/zld/strongshebrew/dict",
    ),
    "G": _module(
        "sword-dict-strongs-greek_3.0-3_all.deb",
        "760a215591f77082aca38e804dc8b28a8ba1aac5a388dd103bfb333d85f80e97",
        "lexdict/zld/strongsgreek/dict",
    ),
}

_DEFINITION = re.compile(r"<def>(.*?)</def>", re.DOTALL)
# derivations, tags, braces around single words
_ENTRY_MARKUP = re.compile(r"<orig>.*?</orig>|<[^>]+>|[{}]", re.DOTALL)
_MARKUP = re.compile(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>|<[^>]+>", re.DOTALL)


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


def definitions() -> dict[str, str]:
    """Number, as the texts write it -> definition: "H0085" -> "... Abraham the later name of Abram: - Abraham."."""
    found = {}
    for letter, (package, stem) in DICTIONARIES.items():
        with data_archive(fetch_package(package)) as archive:
            for key, entry in read_zld(archive, stem):
                if key.isdigit():  # others are notes on the edition
                    found[f"{letter}{int(key):04}"] = definition(entry)
    return found


def read_zld(archive: tarfile.TarFile, stem: str) -> Iterator[tuple[str, str]]:
    """Keys and entries of a SWORD zLD module, in order; all numbers are uint32, little endian.

    `.idx` says where each record lies in `.dat`: offset, size. A record is a key, a line break, the number of a block
    and that of the entry in it. `.zdx` says where each compressed block lies in `.zdt`: offset, size. An unpacked
    block holds the count of its entries, offset and size of each, and the entries.
    """
    index, records, block_index, compressed = (
        archive.extractfile(f"{stem}.{kind}").read() for kind in ("idx", "dat", "zdx", "zdt")
    )
    blocks = [
        zlib.decompress(compressed[start : start + size]) for start, size in struct.iter_unpack("<II", block_index)
    ]
    for start, size in struct.iter_unpack("<II", index):
        key, _, place = records[start : start + size].partition(b"\r\n")
        block, entry = struct.unpack_from("<II", place)
        offset, length = struct.unpack_from("<II", blocks[block], 4 + 8 * entry)
        yield key.decode(), blocks[block][offset : offset + length].decode("utf-8").rstrip("\0")


def definition(entry: str) -> str:
    """The definition in an entry, without markup and derivation; "" if there is none."""
    found = _DEFINITION.search(entry)
    return " ".join(_ENTRY_MARKUP.sub("", found[1]).split()) if found else ""
