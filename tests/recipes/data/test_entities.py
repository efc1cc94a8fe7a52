"""Named entities: the dictionaries' format on a small file, the rules on real definitions and verses."""

import io
import struct
import tarfile
import zlib

import pytest
from recipes_data.entities import TAGS, Lexicon, possible_kinds, tag, words_of
from recipes_data.sword import definition, read_zld

from hf_llm.data.tasks import SPLITS, TASKS, load_task


def archive_of(files: dict[str, bytes]) -> tarfile.TarFile:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    return tarfile.open(fileobj=buffer)


def test_zld():
    """Written by the format's description: two blocks, keys in an order that is not that of the entries."""
    blocks = [[b"Eins\0", "Zwölf".encode() + b"\0"], [b"Drei\0"]]
    packed = []
    for entries in blocks:
        start, table = 4 + 8 * len(entries), struct.pack("<I", len(entries))
        for entry in entries:
            table += struct.pack("<II", start, len(entry))
            start += len(entry)
        packed.append(zlib.compress(table + b"".join(entries)))
    records = [
        key.encode() + b"\r\n" + struct.pack("<II", *place)
        for key, place in {"00003": (1, 0), "00012": (0, 1), "00001": (0, 0)}.items()
    ]
    starts = [sum(map(len, records[:i])) for i in range(3)]
    files = {
        "d.idx": b"".join(struct.pack("<II", s, len(r)) for s, r in zip(starts, records, strict=True)),
        "d.dat": b"".join(records),
        "d.zdx": struct.pack("<IIII", 0, len(packed[0]), len(packed[0]), len(packed[1])),
        "d.zdt": b"".join(packed),
    }
    with archive_of(files) as archive:
        assert list(read_zld(archive, "d")) == [("00003", "Drei"), ("00012", "Zwölf"), ("00001", "Eins")]


def test_definition():
    entry = (
        "<orth>x</orth>\n<def><orig>of Hebrew origin;</orig><lb/>\n {Abihud}, an <hi>Israelite</hi>:--Abiud.\n</def>"
    )
    assert definition(entry) == "Abihud, an Israelite:--Abiud."
    assert definition("<orth>x</orth>") == ""


# of the dictionaries, without markup
DEFINITIONS = {
    "H0074": "From H1 and H5216; father of light (that is enlightening); Abner an Israelite: - Abner.",
    "H1168": "The same as H1167; Baal a Phoenician deity: - Baal [plural] Baalim.",
    "H1187": "From H1168 and H6465; Baal of Peor; Baal Peor a Moabitish deity: - Baal-peor.",
    "H2275": "From H2267; association; Chebron a place in Palestine also the name of two Israelites: - Hebron.",
    "H3068": "From H1961; (the) self Existent or eternal; Jehovah Jewish national name of God: - Jehovah the Lord.",
    "H3389": "(in allusion to its hills); founded peaceful; Jerushalem the capital city of Palestine: - Jerusalem.",
    "H3390": "(Chaldee); corresponding to H3389: - Jerusalem.",
    "H4713": "From H4714; a Mitsrite or inhabitant of Mitsrajim: - Egyptian of Egypt.",
    "H4714": "Dual of H4693; Mitsrajim that is Upper and Lower Egypt: - Egypt Egyptians Mizraim.",
    "H5221": "A primitive root; to strike (lightly or severely literally or figuratively): - beat, give [wounds].",
    "H6430": "Patrial from H6429; a Pelishtite or inhabitant of Pelesheth: - Philistine.",
    "H1732": "From the same as H1730; loving; David the youngest son of Jesse: - David.",
    "G1138": "Dabid (i.e. David), the Israelite king:--David.",
    "G2424": "Jesus (i.e. Jehoshua), the name of our Lord and two (three) other Israelites:--Jesus.",
    "G3480": "a Nazoræan, i.e. inhabitant of Nazareth; by extension, a Christian:--Nazarene, of Nazareth.",
    "G3478": "Nazareth or Nazaret, a place in Palestine:--Nazareth.",
    "G5547": "anointed, i.e. the Messiah, an epithet of Jesus:--Christ.",
}


@pytest.mark.parametrize(
    ("number", "kinds"),
    [
        ("H0074", ("person",)),
        ("H1187", ("deity",)),
        ("H2275", ("place", "person")),
        ("H3068", ("deity",)),
        ("H3390", ("place",)),
        ("H4713", ("people",)),
        ("H4714", ("place",)),
        ("H5221", ()),
        ("H6430", ("people",)),
        ("G5547", ("person",)),
        ("H9999", ()),
    ],
)
def test_possible_kinds(number, kinds):
    assert possible_kinds(DEFINITIONS, number) == kinds


def w(text: str, number: str) -> str:
    return f'<w lemma="strong:{number}">{text}</w>'


def test_words_of():
    osis = (
        f"<title>A Psalm</title>{w('For David', 'H1732')}’s sake, the "
        f'\\nd <divineName>{w("LORD", "H3068")}</divineName> <transChange type="added">is</transChange> '
        f'in {w("Beth-el", "H1008")}.<note placement="foot">x</note>'
    )
    words = words_of(osis)
    assert [(x.text, x.number) for x in words] == [
        *(("For", "H1732"), ("David", "H1732"), ("’s", ""), ("sake", ""), (",", ""), ("the", ""), ("LORD", "H3068")),
        *(("is", ""), ("in", ""), ("Beth-el", "H1008"), (".", "")),
    ]
    assert words[0].unit == words[1].unit != words[6].unit


# book, verse, its spans
VERSES = [
    (
        "1Sam",
        f'{w("David", "H1732")} {w("smote", "H5221")} the {w("Philistine", "H6430")}; {w("Abner", "H0074")}’s men.',
        "David/person Philistine/people Abner/person",
    ),
    ("Judg", f'They {w("smote", "H5221")} {w("Baal", "H1168")} and the {w("LORD", "H3068")}.', ""),
    (
        "Matt",
        f'{w("Jesus", "G2424")} {w("Christ", "G5547")}, the son {w("of David", "G1138")} {w("of Nazareth", "G3480")}',
        "Jesus Christ/person David/person Nazareth/place",
    ),
    ("Matt", f'{w("For Jesus", "G2424")} was in {w("Nazareth", "G3478")} for a day, for <i>Jesus</i> ran.',
     "Jesus/person Nazareth/place Jesus/person"),
    ("Exod", f'The {w("Egyptians", "H4714")} of {w("Egypt", "H4714")}.', "Egyptians/people Egypt/place"),
    ("Josh", f'They fought for {w("Hebron", "H2275")}.', "Hebron/place"),
    ("1Chr", f'The sons of {w("Hebron", "H2275")} were for {w("Abner", "H0074")}.', "Hebron/person Abner/person"),
    ("1Chr", f'{w("Abner", "H0074")}, and {w("Hebron", "H2275")}.', "Abner/person Hebron/person"),
    ("Exod", f'The children of {w("Israel", "H3478")} at the {w("Red", "H5488")} {w("sea", "H3220")}.',
     "Israel/people Red sea/place"),
    ("Gen", f'And {w("Israel", "H3478")} went.', "Israel/person"),
    ("2Kgs", f'The king of {w("Judah", "H3063")} and the men of {w("Judah", "H3063")}.', "Judah/place Judah/people"),
    ("Gen", f'And {w("Judah", "H3063")} begat.', "Judah/person"),
]  # fmt: skip


def test_tags():
    """Definitions, exceptions, form, context, lists and books decide; words without a number go by the others."""
    verses = [words_of(osis) for _, osis, _ in VERSES]
    lexicon = Lexicon(verses, DEFINITIONS)
    for (book, _, expected), words in zip(VERSES, verses, strict=True):
        spans = []
        for word, its_tag in zip(words, tag(words, lexicon, book), strict=True):
            assert its_tag in TAGS
            if its_tag.startswith("B-"):
                spans.append([word.text, its_tag[2:]])
            elif its_tag.startswith("I-"):
                spans[-1][0] += f" {word.text}"
        assert " ".join(f"{text}/{kind}" for text, kind in spans) == expected


@pytest.mark.slow
def test_the_real_set():
    parts = [load_task("entities-kjv", split) for split in SPLITS]
    assert sum(map(len, parts)) == 31_102
    chapters = [set(part["chapter"]) for part in parts]
    assert sum(map(len, chapters)) == len(set.union(*chapters)) == 1_189
    names = TASKS["entities-kjv"].features["tags"].feature.names
    of_verse = {(row["chapter"], row["verse"]): row for part in parts for row in part}
    row = of_verse["Mark.16", 9]
    tagged = [(word, names[number]) for word, number in zip(row["words"], row["tags"], strict=True) if number]
    assert tagged == [("Jesus", "B-person"), ("Mary", "B-person"), ("Magdalene", "I-person")]
