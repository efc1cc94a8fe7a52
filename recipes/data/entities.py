"""Persons, places and peoples in the King James Version: named entities, as a tag (`B-`, `I-`, `O`) for each word.

The text says which Hebrew or Greek word a translated one stands for, and Strong's dictionaries of these words say what
a name is the name of. The tags follow from both by the rules of `entity_rules`: nobody has annotated the verses.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from datasets import ClassLabel, Features, List, Value

from . import entity_rules as rules
from .packages import fetch_package
from .sword import DICTIONARIES, MODULES, data_archive, definitions, read_ztext


Kinds = tuple[str, ...]  # what a word may name, the likeliest first

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
_HIDDEN = re.compile(r"<(note|title)\b[^>]*(?<!/)>.*?</\1>|\\nd |¶", re.DOTALL)  # `\nd`: left over from another format
_UNIT = re.compile(r"(<w .*?</w>)", re.DOTALL)  # the translation of one word
_NUMBER = re.compile(r"<w [^>]*strong:([HG]\d+)")
_TAG = re.compile(r"<[^>]+>")
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|’s?\b|[^\w\s]")  # a possessive ending is a word of its own
# a definition is etymology; the name and what it names: - its translations
_NAME = re.compile(r"; (?=(?!God|Jah|Jehovah|Baal)[A-Z])")
_TRANSLATIONS = re.compile(r"(?::--|: - ?)(?!.*(?::--|: - )).*")
_REFERENCE = re.compile(r"(?:corresponding to|[Tt]he same as|For) ([HG])(\d+)")


@dataclass(frozen=True)
class Word:
    """A word, punctuation mark or possessive ending of a verse.

    Attributes:
        text: as it is written.
        number: in Strong's dictionaries, of the word that it translates; "" for none.
        unit: words of a verse with the same unit translate one word together.
    """

    text: str
    number: str
    unit: int


def rows() -> Iterator[dict]:
    """Yields the words of each verse, their tags, chapter (such as "Gen.1") and verse (from 1)."""
    verses = list(read_verses())
    lexicon = Lexicon([words for *_, words in verses], definitions())
    for chapter, verse, words in verses:
        tags = tag(words, lexicon, book=chapter.partition(".")[0])
        yield {"words": [word.text for word in words], "tags": tags, "chapter": chapter, "verse": verse}


def read_verses() -> Iterator[tuple[str, int, list[Word]]]:
    """Chapter, number and words of each verse."""
    package, folder = MODULES["en"]
    with data_archive(fetch_package(package)) as archive:
        for testament in ("ot", "nt"):
            chapter, verse = "", 0
            for entry in read_ztext(archive, f"{folder}/{testament}"):
                if (found := _CHAPTER.search(entry)) and found[1] != chapter:
                    chapter, verse = found[1], 0
                if chapter and (words := words_of(entry)):
                    verse += 1
                    yield chapter, verse, words


def words_of(osis: str) -> list[Word]:
    """The words of a verse in OSIS markup, without those of notes and titles."""
    text, places = "", []  # of each character: number and unit
    for unit, piece in enumerate(_UNIT.split(_HIDDEN.sub("", osis))):
        number = found[1] if (found := _NUMBER.match(piece)) else ""
        piece = _TAG.sub("", piece)
        text += piece
        places += [(number, unit)] * len(piece)
    return [Word(found[0], *places[found.start()]) for found in _WORD.finditer(text)]


class Lexicon:
    """What the words of a text may name.

    A number is a name's if at least half of its translations have a capital. A word is a name if it has a capital and
    such a number, and is no common word that only begins a sentence ("For David", for one word of the original). A
    word without such a number (in italics, or for a pronoun) names what it names elsewhere.
    """

    def __init__(self, verses: Sequence[Sequence[Word]], definitions: Mapping[str, str]):
        words = [word for verse in verses for word in verse]
        self.lower = {(word.text, word.number) for word in words if word.text.islower()}
        counts = Counter(word.text for word in words if word.text.islower())
        self.common = {"o", "i"} | {text for text, count in counts.items() if count > 2}
        numbers = {number: possible_kinds(definitions, number) for number in _numbers_of_names(verses)}
        self.numbers: dict[str, Kinds] = {n: kinds for n, kinds in numbers.items() if kinds} | rules.EXCEPTIONS
        self.words = self._words(words)

    def kinds(self, words: Sequence[Word]) -> list[Kinds]:
        """For each word of a verse what it may name; () for nothing."""
        sizes = Counter(word.unit for word in words)
        return [self._kinds(word, alone=sizes[word.unit] == 1) for word in words]

    def _kinds(self, word: Word, alone: bool) -> Kinds:
        text = word.text.lower()
        if not word.text[0].isupper():
            return ()
        kinds = self.numbers.get(word.number)
        if text in self.common:
            return kinds or () if alone and (text, word.number) not in self.lower else ()
        if kinds is None or (kinds == ("people",) and not by_form(word.text)):
            return self.words[word.text] or kinds or ()  # "of Nazareth", for one word, names a place, too
        return kinds

    def _words(self, words: list[Word]) -> dict[str, Kinds]:
        """The kinds of the number that a word translates most often, of a number of more than a people if there is."""
        counts = defaultdict(Counter)
        for word in words:
            if word.text[0].isupper() and word.text.lower() not in self.common:
                counts[word.text][word.number] += 1
        found = {}
        for text, numbers in counts.items():
            kinds = [self.numbers[number] for number, _ in numbers.most_common() if number in self.numbers]
            found[text] = min(kinds, key=("people",).__eq__, default=())  # the first of those that are not equal
        return found


def _numbers_of_names(verses: Sequence[Sequence[Word]]) -> set[str]:
    """Numbers of which at least half of the translations have a capital."""
    units, names = Counter(), Counter()
    for words in verses:
        numbered = [word for word in words if word.number]
        units.update(number for number, _ in {(word.number, word.unit) for word in numbered})
        names.update(number for number, _ in {(w.number, w.unit) for w in numbered if w.text[0].isupper()})
    return {number for number, count in names.items() if count >= units[number] / 2}


def possible_kinds(definitions: Mapping[str, str], number: str) -> Kinds:
    """Kinds of what a number names, in the order of its definition, or of the one to which this refers."""
    definition = definitions.get(number, "")
    if not (kinds := kinds_in(definition)) and (other := _REFERENCE.search(definition)):
        return kinds_in(definitions.get(f"{other[1]}{int(other[2]):04}", ""))
    return kinds


def kinds_in(definition: str) -> Kinds:
    """Kinds of which a definition speaks, in its order."""
    if rules.OF_A_PEOPLE.search(definition):
        return ("people",)
    description = _NAME.split(_TRANSLATIONS.sub("", definition))[-1]
    places = {}
    for kind, pattern in rules.KINDS:
        if found := pattern.search(description):
            places[kind] = min(found.start(), places.get(kind, len(description)))
    if rules.DEITY in places:  # "a Moabitish deity"
        places.pop("person", None)
    return tuple(sorted(places, key=places.get))


def tag(words: Sequence[Word], lexicon: Lexicon, book: str) -> list[str]:
    """A tag for each word of a verse."""
    tags = []
    chosen = choose([word.text for word in words], lexicon.kinds(words), book)
    for i, (word, kind) in enumerate(zip(words, chosen, strict=True)):
        before, last = (words[i - 1].text, tags[-1]) if i else ("", "O")
        if last != "O" and (before, word.text) in rules.TAILS:
            tags.append(f"I{last[1:]}")
        elif kind not in rules.ENTITIES:
            tags.append("O")
        else:
            goes_on = i and chosen[i - 1] == kind and word.text in rules.BYNAMES
            tags.append(f"{'I' if goes_on else 'B'}-{kind}")
    return tags


def choose(texts: Sequence[str], possible: Sequence[Kinds], book: str) -> list[str | None]:
    """For each word of a verse one of its possible kinds, None where it has none."""
    lower = [text.lower() for text in texts]
    chosen = [
        (by_form(text) or (kinds[0] if len(kinds) == 1 else by_context(lower, i, kinds) or by_book(book, kinds)))
        if kinds
        else None
        for i, (text, kinds) in enumerate(zip(texts, possible, strict=True))
    ]
    for order in (range(len(texts)), reversed(range(len(texts)))):  # lists are read from both ends
        for i in order:
            if chosen[i] is None:
                chosen[i] = next((kind for kind in by_list(lower, chosen, i) if kind in possible[i]), None)
    return [kind or next(iter(kinds), None) for kind, kinds in zip(chosen, possible, strict=True)]


def by_form(text: str) -> str | None:
    """The kind that the form of a name decides."""
    return next((kind for kind, pattern in rules.FORMS if pattern.fullmatch(text)), None)


def by_context(lower: Sequence[str], i: int, kinds: Kinds) -> str | None:
    """The kind that the four words on both sides of a name decide."""
    left, right = " ".join(lower[max(0, i - 4) : i]), " ".join(lower[i + 1 : i + 5])
    fits = (
        k for k, before, after in rules.CONTEXTS if k in kinds and before.fullmatch(left) and after.fullmatch(right)
    )
    return next(fits, None)


def by_book(book: str, kinds: Kinds) -> str | None:
    """The kind that the book decides: of forefathers and peoples with one name, or of lands with a person's name."""
    kind = rules.BOOKS.get(book)
    return kind if kind in kinds and (kind == "person") == ("people" in kinds) else None


def by_list(lower: Sequence[str], chosen: Sequence[str | None], i: int) -> Iterator[str]:
    """Kinds of the names before and after a name in a list."""
    for step in (-1, 1):
        j, links = i + step, set()
        while 0 <= j < len(lower) and lower[j] in rules.LINKS | rules.LINKS_TOO:
            links.add(lower[j])
            j += step
        if links & rules.LINKS and 0 <= j < len(lower) and chosen[j]:
            yield chosen[j]
