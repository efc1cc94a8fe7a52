"""Strong's dictionaries of the Hebrew and Greek words of the Bible (1890), in the public domain.

Texts of the SWORD project name the word of the original behind a translated one by its number in these dictionaries,
such as H0085; the definitions say what a name is the name of.
"""

import re
import struct
import tarfile
import zlib
from collections.abc import Iterator

from .debian import DebianFile, data_archive, fetch_debian


# letter of the numbers -> (package, stem of the module's files)
DICTIONARIES = {
    "H": (
        DebianFile(
            package="sword-dict-strongs-hebrew=3.0-1",
            name="sword-dict-strongs-hebrew_3.0-1_all.deb",
            sha256="614e272f6a4153a48cc9893f67d342564de98be23d824e7f8bc7678ca4938cfa",
            licence="public-domain",
        ),
        "./usr/share/sword/modules/lexdict/zld/strongshebrew/dict",
    ),
    "G": (
        DebianFile(
            package="sword-dict-strongs-greek=3.0-3",
            name="sword-dict-strongs-greek_3.0-3_all.deb",
            sha256="760a215591f77082aca38e804dc8b28a8ba1aac5a388dd103bfb333d85f80e97",
            licence="public-domain",
        ),
        "./usr/share/sword/modules/lexdict/zld/strongsgreek/dict",
    ),
}

_DEFINITION = re.compile(r"<def>(.*?)</def>", re.DOTALL)
_MARKUP = re.compile(r"<orig>.*?</orig>|<[^>]+>|[{}]", re.DOTALL)  # derivations, tags, braces around single words


def definitions() -> dict[str, str]:
    """Number, as the texts write it -> definition: "H0085" -> "... Abraham the later name of Abram: - Abraham."."""
    found = {}
    for letter, (package, stem) in DICTIONARIES.items():
        with data_archive(fetch_debian(package)) as archive:
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
    return " ".join(_MARKUP.sub("", found[1]).split()) if found else ""
