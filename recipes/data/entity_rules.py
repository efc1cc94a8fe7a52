"""Tables that say what a name in the King James Version names: a person, a place or a people.

What a number of Strong's dictionaries may name is read off its definition by `KINDS`, or stands in `EXCEPTIONS`.
Where that leaves a choice, the first of these decides: the word's form (`FORMS`), the words before and after it
(`CONTEXTS`), the book (`BOOKS`), the names that it is listed with (`LINKS`), the order of the definition.

What an annotator would have to know:

- Gods are no entities: God, LORD, JEHOVAH, Almighty, the Holy Ghost, Baal, Diana. Jesus, Christ and Messiah are a
  person, so are angels, Satan and Beelzebub.
- Peoples are tribes, nations, their members and adjectives, and parties: Israelites, Hittite, Pharisees, Gentiles.
- Israel is Jacob or his posterity, as the dictionary has it, never a place. Judah, Moab and the like are a place where
  their king, land or cities are spoken of, a people where their children, men or God are, a person in his family.
  Egypt, Assyria and Babylon are places, Jacob is a person, also where nations are meant.
- Titles (king, Pharaoh's, the Baptist) are no part of a name, but Pharaoh and Rabshakeh are persons. A name in another
  name is not told apart from it: Obed-edom.
- Feasts, months, stars, books and languages by their own names (Purim, Nisan, Orion) are no entities.
"""

import re


# kinds that are tagged; gods have a kind too, so that they are not taken for something else, but are no entities here
ENTITIES = ("person", "place", "people")
DEITY = "deity"

_NATIONS = (
    "Israelit Levit Benjamit Benjaminit Simeonit Gadit Gileadit Rechabit Gibeonit Judahit Edomit Horit Ishmaelit "
    "Midianit Moabit Ammonit Hittit Hivit Jebusit Amorit Canaanit Amalekit Anakit Kenit Shuhit Arkit Gittit Danit "
    "Ephraimit Reubenit Manassit Korahit"
).split()
_ONE_OF_A_NATION = (
    "Jew Jewess Isr Samaritan Idum(?:ae|e)an Ph?ill?istine Egyptian Syrian Assyrian Babylonian Chald(?:ae|e)an "
    "Mesopotamian Persian Mede Median Tyrian Arab Arabian Cushite Ethiopian Hebrew Hebrewess Christian Roman Greek "
    "Corinthian Ephesian Macedonian Cretan Colossian Thessalonian Hellenist Athenian Cyrenian Ishmaelite Buzite "
    "Naamathite Levite Herods Adullamite Apostle Anakim Nethinim Nethimim"
).split()
_PEOPLE_OF_ONE_NAME = (
    "son daughter wife mother father brother sister nephew niece grandson grandfather concubine king prince princess "
    "queen prophet prophetess apostle judge patriarch antediluvian officer general eunuch priest chief chieftain "
    "lawgiver successor servant slave maid courtier governor descendant ancestor giant emperor archangel angel man "
    "woman female heir leader Messiah disciple satrap progenitor heroine child doorkeeper minister friend companion "
    "spouse orator magician centurion deputy procurator opponent convert traitor devil enemy counsellor nurse "
    "men women wizard heretic relative husband porter member"
).split()
_PLACES = (
    "place city cities town capital capitol region country countries mountain mount hill river brook valley plain "
    "district land island territory province desert Desert cliff crag spot well pool cistern fountain wady stream "
    "village fortress citadel harbor harbour peak summit suburb rock gate tower ridge quarter tract empire thicket "
    "pass range street forum stone palce part Egypt Jerusalem seaport colony continent field"
).split()
_PEOPLES = (
    "patrial Patrial patronymic Patronymic descendants descendents posterity inhabitant native tribe people sect "
    "sectary nation nations adherent belonging race aborigines bedawin mountaineer collectively"
).split()


def _any_of(words: list[str], ending: str = "s?") -> str:
    return rf"\b(?:{'|'.join(words)}){ending}\b"


_NATION = "|".join([*_ONE_OF_A_NATION, *(f"{stem}(?:e|ess)" for stem in _NATIONS)])
_COUNTS = "two|three|four|five|six|seven|eight|nine|ten|[a-z]+teen|twenty|several|many|other|some|of|one"

# kind -> what says so in a definition
KINDS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (DEITY, rf"{_any_of(['deity', 'deities', 'idol', 'goddess', 'god'])}|name of God|sacred name"),
        ("person", rf"\b(?:an?|one|the)(?: [\w-]+){{0,3}} (?:{_NATION})\b(?! {_any_of(_PLACES)})"),
        ("person", rf"\b(?:{_COUNTS})(?: [\w-]+){{0,3}} (?:{_NATION})(?:s|es)?\b(?! {_any_of(_PLACES)})"),
        ("person", _any_of(_PEOPLE_OF_ONE_NAME)),
        ("person", r"Nethini[mn]|Temple Servant|(?:sur|nick)?name of (?:Abra[hm]+|Azariah|Naomi|Solomon|Peter)"),
        ("person", r"(?:epithet|name) of (?:Gideon|Paul|Christ|our Lord|Judas|Joseph|Barsabas|Satan|Pashur|Daniel)"),
        ("place", _any_of(_PLACES)),
        ("people", _any_of(_PEOPLES)),
    )
)
# a definition of this form is that of a people, whatever else it mentions
OF_A_PEOPLE = re.compile(r"^.{0,25}[Pp]atr(?:ial|onymic)|^an? .*(?:inhabitant|native|descendant)")
# kinds -> numbers of which the definition does not say so, or in an order that is not that of use; and a word for each
_EXCEPTIONS = {
    (): (
        "G4151 Spirit, G0747 Prince, G0910 Baptist, G0511 Above, H5529 Folly, H4216 Mazzaroth, H5542 Selah, "
        "H0224 Urim, H8550 Thummim, H1100 Belial, G0955 Belial, H0143 Adar, H0144 Adar, H5180 Nehushtan, "
        "H8660 Tirshatha, G0005 Abba, G5598 Omega, H1078 Bel"
    ),
    (DEITY,): "H3069 GOD, G3962 Father",
    ("people",): (
        "H1471 Gentiles, G1484 Gentiles, G1672 Greek, H3484 Jeshurun, G2265 Herodians, H7497 Rephaim, "
        "H3159 Jezreelitess, G4658 Scythian, G1946 Epicureans, G2451 Jewish, G4514 Roman, H1575 Gammadims, "
        "H6112 Eznite, H5411 Nethinims, H5412 Nethinims, H5139 Nazarite, G4523 Sadducees, H1636 Garmite"
    ),
    ("person",): (
        "G3094 Magdalene, G2207 Zelotes, H0172 Aholibah, H0170 Aholah, H4899 Messiah, G3323 Messias, "
        "G5372 Philetus, H1966 Lucifer, H1908 Hadad, H0120 Adam, G4074 Peter, H1463 Gog, H8227 Shaphan, "
        "G3773 Urbane, H4732 Mikloth, H8339 Sheshbazzar, H8340 Sheshbazzar, H6847 Zaphnath-paaneah, "
        "H3142 Jushab-hesed, H2072 Zabbud, H1919 Hadassah, H1126 Ben-oni, H3380 Jerubbesheth, H3348 Jakeh, "
        "G0623 Apollyon"
    ),
    ("place",): (
        "G1671 Greece, H5488 Red, H0780 Ararat, H1912 India, H3452 Jeshimon, G5477 Chanaan, G2747 Cenchrea, "
        "G2898 Calvary, G0717 Armageddon, G3963 Patmos, G0099 Adria, H0894 Babylon, G0773 Asia, G2063 Red, "
        "G1636 Olives, H2132 Olives, H1166 Beulah, G1042 Gabbatha, G3098 Magog, H6489 Pekod, "
        "H3070 Jehovah-jireh, G0098 Adramyttium, G0221 Alexandria, G0222 Alexandria, H5910 Accho, H4869 Misgab, "
        "H6230 Esek, H1567 Galeed, H4792 Merom, H6160 Arabah, H4850 Merathaim, H5489 Red, H1394 Gibeath, "
        "H6888 Zererath, H4081 Middin, H2317 Hadrach, H0329 Atad, H4965 Metheg-ammah"
    ),
    ("people", "person"): (
        "H0722 Arodi, H3478 Israel, G2474 Israel, H3878 Levi, H6938 Kedar, H8422 Tubal, H4902 Meshech, H8425 Togarmah"
    ),
    ("person", "people"): "H5983 Ammon",
    ("person", "place"): (
        "H2696 Hezron, H1106 Bela, H8480 Tahath, H4601 Maachah, H2660 Hepher, H5658 Abdon, H0356 Elon, "
        "H7652 Sheba, H1446 Gedor, H8087 Shema, H7552 Rekem"
    ),
    ("place", DEITY): "H6252 Ashtaroth",
    ("place", "person"): (
        "H7417 Rimmon, H7927 Shechem, H5015 Nebo, H6721 Sidon, H0938 Buz, H3568 Ethiopia, H1657 Goshen, "
        "H6068 Anathoth, H0211 Ophir, H1688 Debir, H2771 Haran, H2657 Hephzi-bah, H3003 Jabesh-gilead, H1719 Dedan, "
        "H5780 Uz, H5434 Seba, H3667 Canaan, H4176 Moreh, H2606 Hananeel, H4031 Magog"
    ),
    ("people", "place", "person"): (
        "H5321 Naphtali, H7205 Reuben, H3485 Issachar, H1410 Gad, H8095 Simeon, H0123 Edom, H3063 Judah, "
        "H3061 Judah, H4124 Moab, H0669 Ephraim, H1144 Benjamin, "
        "H4519 Manasseh, H2074 Zebulun, H0836 Asher, H1835 Dan, H6002 Amalek, H4080 Midian"
    ),
    ("person", "people", "place"): "H7014 Cain",
    ("place", "people"): "H3778 Chaldea",
    (
        "place",
        "people",
        "person",
    ): "H0758 Syria, H3120 Grecia, H0804 Assyria, H7614 Sheba, H8487 Teman, H6316 Phut, H5867 Elam",
}
EXCEPTIONS = {entry.split()[0]: kinds for kinds, entries in _EXCEPTIONS.items() for entry in entries.split(", ")}

# form of a name -> its kind
FORMS = (
    (
        "people",
        re.compile(
            r"(?!(?:Midian|Simeon|Tahpenes|Sosthenes|Hermogenes|Alian|Ahian)$).+"
            r"(?:ites?|itess|itish|ians?|[ae]eans?|[ae]ans|ines|ims|ees|enes|icks)"
            r"|Jews?|JEWS|Jew(?:ess|ish)|Babylonish|Gentiles?|Greeks?|Hebrews?|Philistine|Philistim|Samaritans?|Medes?|Cretes"
        ),
    ),
)

_BEFORE_A_PERSON = (
    "(?:son|daughter|wife|brother|father|mother|servant|seed|sons|daughters) of|begat|bare|"
    "(?:his|her|thy|my|our|their) (?:son|sons|brother|father|mother|wife|servant|name|daughter|firstborn)|names?|king"
)
_BEFORE_A_PEOPLE = (
    "(?:children|tribes?|houses?|men|man|people|famil(?:y|ies)|hosts?|remnant|congregation|elders|god|glory|pride|sins?|"
    "transgressions?|army|captivity|burden|virgin|redeemer|holy one|rulers?|princes|captains|heads|camps?|strength|"
    "thousands|standard|daughter|backsliding|iniquity|outcasts|stock|staff|saviour|hope|light|stone|shepherd|"
    "assembly|judges?|fathers|wickedness|whoredoms?|envy|horn|rod|ten thousands|portion|"
    "armies) of|all|o|children"
)
_BEFORE_A_PLACE = (
    "(?:kings?|lands?|cit(?:y|ies)|country|borders?|coasts?|mounts?|mountains?|wilderness|plains?|inhabitants?|towns|"
    "villages|rivers?|brook|valley|hills?|queen|governor|province|streets?|forest|wells?|gates?|throne|north|"
    "south|east|west|side|way|out|parts|fords|vine|vineyards|waters?|inhabiter|lords|merchants|ships|region|suburbs|"
    "high places|elders|men|balm|gold|oaks|cedars|tower|wall|walls|end|entrance|entering|princes|dukes) of"
    "|in|into|at|through|throughout|toward|towards|beyond|mount|over against|between|nigh|land|on this side"
)
# kind, what stands before the name and after it, in lower case; "" for anything
CONTEXTS = tuple(
    (
        kind,
        re.compile(rf"(?:^|.* )(?:{before})" if before else ".*"),
        re.compile(rf"(?:{after})(?: .*|$)" if after else ".*"),
    )
    for kind, before, after in (
        ("people", "(?:(?:o|virgin) daughter|daughters) of", ""),
        (
            "person",
            "",
            "begat|king of|the (?:[a-z]+ )?(?:son|daughter|brother|king|priest|prophet|father|wife)|"
            "his (?:son|brother|father|wife|servant)|her (?:son|husband)",
        ),
        ("person", _BEFORE_A_PERSON, ""),
        ("people", _BEFORE_A_PEOPLE, ""),
        ("place", _BEFORE_A_PLACE, ""),
        ("person", "", "’s? (?:wife|sons?|daughter|father|brother|mother|servants?|firstborn)"),
        ("place", "from", "(?:even )?(?:to|unto) .*"),
    )
)

# book -> what a name of several kinds is there unless its context says otherwise: Genesis tells of forefathers, the
# prophets of the lands that have their names
_PROPHETS = "Isa Jer Lam Ezek Hos Joel Amos Obad Mic Nah Hab Zeph Zech Mal".split()
BOOKS = {"Gen": "person", **dict.fromkeys(_PROPHETS, "place")}

# words in lower case that belong to the name before
TAILS = frozenset({("Red", "sea")})

# names that go on with the one before: Simon Peter
BYNAMES = frozenset(
    "Christ Jesus Iscariot Pilate Peter Bar-jona Augustus Cæsar Paulus Lysias Festus Philippi Kiriathaim Magdalene "
    "Zelotes".split()
)

# between the names of a list; one of the first is among them: Jerusalem and to Judah
LINKS = frozenset(", and or nor".split())
LINKS_TOO = frozenset("the to unto from in".split())
