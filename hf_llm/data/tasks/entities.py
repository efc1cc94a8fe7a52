"""Persons, places and peoples in the King James Version: named entities as tags of words."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from datasets import ClassLabel, Features, List, Value

from . import entity_rules as rules
from .debian import data_archive, fetch_debian
from .strongs import DICTIONARIES, definitions
from .verses import MODULES, read_ztext


PACKAGES = (MODULES["en"][0], *(package for package, _ in DICTIONARIES.values()))
TAGS = ["O", *(f"{mark}-{kind}" for kind in rules.ENTITIES for mark in "BI")]
FEATURES = Features(
    {
        "words": List(Value("string")),
        "tags": List(ClassLabel(names=TAGS)),
        "chapter": Value("string"),
        "verse": Value("int32"),
    }
)

_CHAPTER = re.compile(r'<chapter [^>]*osisID="([^"]+)"')
_HIDDEN = re.compile(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>|\\nd |¶", re.DOTALL)  # \nd: left over from another format
_NUMBERED = re.compile(r"<w [^>]*strong:([HG]\d+)[^>]*>(.*?)</w>|<[^>]+>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|’s?\b|[^\w\s]")  # a possessive ending is a word of its own
_DESCRIPTION = re.compile(r"; (?=(?!God|Jah|Jehovah|Baal)[A-Z])")  # where etymology ends and the name begins
_TRANSLATIONS = re.compile(r"(?::--|: - ?)(?!.*(?::--|: - )).*")
_SEE = re.compile(r"(?:corresponding to|[Tt]he same as|For) ([HG])(\d+)")


@dataclass(frozen=True)
class Word:
    """A word of a verse.

    Attributes:
        text: as it is written.
        number: in Strong's dictionaries of the word that it translates; "" for none.
        unit: which translated unit of the verse it belongs to: words of one unit share one number.
    """

    text: str
    number: str
    unit: int


def rows() -> Iterator[dict]:
    """Yields the words of each verse and their tags, chapter ("Gen.1") and verse (from 1).

    The chapter decides the split, so that no chapter is in two of them.
    """
    verses = list(read_verses())
    names = Names([words for *_, words in verses], definitions())
    for chapter, verse, words in verses:
        tags = tag(words, names, chapter.partition(".")[0])
        yield {"words": [word.text for word in words], "tags": tags, "chapter": chapter, "verse": verse}


def read_verses() -> Iterator[tuple[str, int, list[Word]]]:
    """Chapter, number and words of each verse."""
    package, folder = MODULES["en"]
    with data_archive(fetch_debian(package)) as archive:
        for testament in ("ot", "nt"):
            chapter = verse = None
            for entry in read_ztext(archive, f"{folder}/{testament}"):
                if (found := _CHAPTER.search(entry)) and found[1] != chapter:
                    chapter, verse = found[1], 0
                if chapter and (words := words_of(entry)):
                    verse += 1
                    yield chapter, verse, words


def words_of(osis: str) -> list[Word]:
    """Words, punctuation marks and possessive endings of a verse in OSIS markup, without notes and titles."""
    text, places = "", []  # of each character: number and unit
    for unit, piece in enumerate(re.split(r"(<w .*?</w>)", _HIDDEN.sub("", osis), flags=re.DOTALL)):
        number = found[1] if (found := re.match(r"<w [^>]*strong:([HG]\d+)", piece)) else ""
        piece = _TAG.sub("", piece)
        text += piece
        places += [(number, unit)] * len(piece)
    return [Word(m[0], *places[m.start()]) for m in _WORD.finditer(text)]


def kinds_of_numbers(verses: list[list[Word]], definitions: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Number -> the kinds of what it names, for those that are names: nearly always translated with a capital."""
    units, capital = Counter(), Counter()
    for words in verses:
        found = {(word.number, word.unit): False for word in words if word.number}
        found |= {(word.number, word.unit): True for word in words if word.number and word.text[0].isupper()}
        units.update(number for number, _ in found)
        capital.update(number for (number, _), is_capital in found.items() if is_capital)
    names = {number for number, count in capital.items() if count >= units[number] / 2}
    kinds = {number: possible_kinds(number, definitions) for number in names} | rules.EXCEPTIONS
    return {number: found for number, found in kinds.items() if found or number in rules.EXCEPTIONS}


def possible_kinds(number: str, definitions: Mapping[str, str]) -> tuple[str, ...]:
    """Kinds of what a number names, in the order of its definition, or of the one that this refers to."""
    text = definitions.get(number, "")
    other = _SEE.search(text)
    return _kinds_in(text) or (_kinds_in(definitions.get(f"{other[1]}{int(other[2]):04}", "")) if other else ())


def _kinds_in(definition: str) -> tuple[str, ...]:
    if rules.OF_A_PEOPLE.search(definition):
        return ("people",)
    description = _DESCRIPTION.split(_TRANSLATIONS.sub("", definition))[-1]
    places = {}
    for kind, pattern in rules.KINDS:
        if found := pattern.search(description):
            places[kind] = min(found.start(), places.get(kind, len(description)))
    if rules.DEITY in places:
        places.pop("person", None)
    return tuple(sorted(places, key=places.get))


def tag(words: list[Word], kinds: "Names", book: str) -> list[str]:
    """A tag for each word."""
    chosen = choose(words, kinds.possible(words), book)
    tags = []
    for i, kind in enumerate(chosen):
        if i and tags[-1] != "O" and (words[i - 1].text, words[i].text) in rules.TAILS:
            tags.append("I" + tags[-1][1:])
        elif kind not in rules.ENTITIES:
            tags.append("O")
        else:
            tags.append(("I-" if i and chosen[i - 1] == kind and words[i].text in rules.BYNAMES else "B-") + kind)
    return tags


class Names:
    """What the words of a text may name.

    A word is a name if it has a capital and translates a number that is nearly always translated with a capital; if
    it has no such number, it is taken for what it names elsewhere.
    """

    def __init__(self, verses: list[list[Word]], definitions: Mapping[str, str]):
        self.of_numbers = kinds_of_numbers(verses, definitions)
        lower = Counter(word.text for words in verses for word in words if word.text.islower())
        self.common = {word for word, count in lower.items() if count > 2} | {"o", "i"}
        self.lowered = {(word.text, word.number) for words in verses for word in words if word.text.islower()}
        numbers = defaultdict(Counter)
        for words in verses:
            for word in words:
                if word.text[0].isupper() and word.text.lower() not in self.common:
                    numbers[word.text][word.number] += 1
        self.of_words = {}
        for text, counts in numbers.items():
            found = [self.of_numbers[number] for number, _ in counts.most_common() if number in self.of_numbers]
            found.sort(key=lambda kinds: kinds == ("people",))
            self.of_words[text] = found[0] if found else ()

    def possible(self, words: list[Word]) -> list[tuple[str, ...]]:
        sizes = Counter(word.unit for word in words)
        return [self._possible(word, sizes[word.unit] == 1) for word in words]

    def _possible(self, word: Word, alone: bool) -> tuple[str, ...]:
        text = word.text.lower()
        if not word.text[0].isupper():
            return ()
        if text in self.common and (not alone or (text, word.number) in self.lowered):
            return ()
        kinds = self.of_numbers.get(word.number)
        if text not in self.common and (kinds is None or (kinds == ("people",) and not by_form(word.text))):
            return self.of_words[word.text] or kinds or ()  # Nazareth, in "of Nazareth" for one word, is a place
        return kinds or ()


def choose(words: list[Word], possible: list[tuple[str, ...]], book: str) -> list[str | None]:
    """For each word one of its possible kinds."""
    texts = [word.text for word in words]
    lower = [text.lower() for text in texts]
    chosen: list[str | None] = [kinds[0] if len(kinds) == 1 else None for kinds in possible]
    for i, kinds in enumerate(possible):
        if kinds:
            chosen[i] = by_form(texts[i]) or chosen[i] or by_context(lower, i, kinds)
    usual = rules.BOOKS.get(book)
    chosen = [
        kind or (usual if usual in kinds and (usual == "person" or "people" not in kinds) else None)
        for kind, kinds in zip(chosen, possible, strict=True)
    ]
    for order in (range(len(words)), reversed(range(len(words)))):
        for i in order:
            if possible[i] and chosen[i] is None:
                near = neighbours(lower, possible, chosen, i)
                chosen[i] = next((k for k in near if k in possible[i]), None)
    return [kind or next(iter(kinds), None) for kind, kinds in zip(chosen, possible, strict=True)]


def by_form(word: str) -> str | None:
    return next((kind for kind, pattern in rules.FORMS if pattern.fullmatch(word)), None)


def by_context(lower: list[str], i: int, kinds: tuple[str, ...]) -> str | None:
    before, after = " ".join(lower[max(0, i - 4) : i]), " ".join(lower[i + 1 : i + 5])
    return next(
        (
            kind
            for kind, left, right in rules.CONTEXTS
            if kind in kinds and left.fullmatch(before) and right.fullmatch(after)
        ),
        None,
    )


def neighbours(lower, possible, chosen, i) -> Iterator[str]:
    """Kinds of the names that the one at `i` is listed with."""
    for step in (-1, 1):
        j = i + step
        while 0 <= j < len(lower) and lower[j] in rules.LINKS:
            j += step
        if j != i + step and 0 <= j < len(lower) and possible[j] and chosen[j]:
            yield chosen[j]
