"""English and Spanish of the same verses: the King James Version and the Reina-Valera of 1909, in the public domain.

Both are modules of the SWORD project in its format zText with the same versification, so that verse n of one is
verse n of the other. Where the translators divided the text otherwise (a few hundred verses), a pair is only in part
a translation.
"""

from collections.abc import Iterator

from datasets import Features, Value

from .packages import fetch_package
from .sword import MODULES, data_archive, plain_text, read_ztext


FEATURES = Features({"en": Value("string"), "es": Value("string")})


def rows() -> Iterator[dict]:
    """Yields the verses in order, without headings, notes and paragraph signs; en, es."""
    languages = []
    for package, folder in MODULES.values():
        with data_archive(fetch_package(package)) as archive:
            languages.append([plain_text(e) for part in ("ot", "nt") for e in read_ztext(archive, f"{folder}/{part}")])
    for texts in zip(*languages, strict=True):
        if all(texts):  # entries of headings are empty by now
            yield dict(zip(MODULES, texts, strict=True))
