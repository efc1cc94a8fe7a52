"""Tables that say what a name in the King James Version names: a person, a place or a people.

What a number of Strong's may name is read off its definition by `KINDS`, in the definition's order, or stands in
`EXCEPTIONS`. Where that leaves a choice, the first of these decides that names a possible kind: the word's form
(`FORMS`), the words before and after it (`CONTEXTS`), the names that it is listed with, `USUAL`, the definition's
order.
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
    "Naamathite Levite Herods"
).split()
_PEOPLE_OF_ONE_NAME = (
    "son daughter wife mother father brother sister nephew niece grandson grandfather concubine king prince princess "
    "queen prophet prophetess apostle judge patriarch antediluvian officer general eunuch priest chief chieftain "
    "lawgiver successor servant slave maid courtier governor descendant ancestor giant emperor archangel angel man "
    "woman female heir leader Messiah disciple satrap progenitor heroine child doorkeeper minister friend companion "
    "spouse orator magician centurion deputy procurator opponent convert traitor devil enemy counsellor nurse"
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


# kind -> what says so in a definition
KINDS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (DEITY, rf"{_any_of(['deity', 'deities', 'idol', 'goddess', 'god'])}|name of God|sacred name"),
        ("person", _any_of(_NATIONS, "(?:e|es|ess|esses|ish)") + rf"(?! {_any_of(_PLACES)})"),
        ("person", _any_of(_ONE_OF_A_NATION) + rf"(?! {_any_of(_PLACES)})"),
        ("person", _any_of(_PEOPLE_OF_ONE_NAME)),
        ("person", r"Nethini[mn]|Temple Servant|(?:sur|nick)?name of (?:two|three|Abraham|Azariah|Naomi|Solomon|Peter)"),
        ("person", r"(?:epithet|name) of (?:Gideon|Paul|Christ|our Lord|Judas|Joseph|Barsabas|Satan|Pashur|Daniel)"),
        ("place", _any_of(_PLACES)),
        ("people", _any_of(_PEOPLES)),
    )
)
# a definition of this form is that of a people, whatever else it mentions
OF_A_PEOPLE = re.compile(r"[Pp]atrial|[Pp]atronymic|^an? .*(?:inhabitant|native|descendant)")
# numbers whose definition does not say it, or says something else -> kinds, () for none
EXCEPTIONS = {
    "H3478": ("people", "person"),  # Israel: Jacob's other name, "also (typically) of his posterity"
    "G2474": ("people", "person"),
    "H7205": ("person", "people"),  # Reuben, and others of Jacob's sons, whose tribes go unmentioned
    "H3878": ("person", "people"),  # Levi
    "H3485": ("person", "people"),  # Issachar
    "H5321": ("person", "people", "place"),  # Naphtali
    "H1410": ("person", "people"),  # Gad
    "H8095": ("person", "people"),  # Simeon
    "H5983": ("person", "people"),  # Ammon
    "H1471": ("people",),  # Gentiles
    "G1484": ("people",),
    "G1672": ("people",),  # Greek
    "G1671": ("place",),  # Greece
    "H5488": ("place",),  # Red sea
    "H0894": ("place",),  # Babylon
    "H1908": ("person",),  # Hadad: kings, and an idol
    "H7417": ("place", "person"),  # Rimmon
    "H5015": ("place", "person"),  # Nebo
    "H6252": ("place", DEITY),  # Ashtaroth
    "G0773": ("place",),  # Asia
    "H0120": ("person",),  # Adam, where it is no man
    "G2063": ("place",),  # Red sea
    "G1636": ("place",),  # mount of Olives
    "H2132": ("place",),
}

# form of a word -> kind that it decides for
FORMS = (
    ("people", re.compile(r".+(?:ites?|itess|itish|ians?|eans?|ans|ines|ims|ees)|Jews?|Jewess|Gentiles?|Greeks?|Syrian|.*Egyptian")),
)

# kind <- what stands before, what stands after (lower case, single spaces)
CONTEXTS = tuple(
    (kind, re.compile(rf"(?:^| )(?:{before})$"), re.compile(rf"(?:{after})(?: |$)"))
    for kind, before, after in (
        ("person", "", "begat|the son of|the daughter of|his (?:son|brother|father|wife|servant)|her (?:son|husband)"),
        ("person", "(?:son|daughter|wife|brother|father|mother|servant|seed) of|begat|bare|name|his son|his brother|my son|my brother|our father|thy servant|his name|her name", ""),
        ("people", "(?:children|tribe|tribes|house|houses|men|people|families|family|host|hosts|remnant|congregation|elders|god|glory|pride|sins?|transgressions?|army|captivity|burden|virgin|redeemer|king and|holy one|rulers?|princes|captains|heads|camp|strength) of|all|o|thousands of", ""),
        ("place", "(?:kings?|land|lands|city|cities|country|borders?|coasts?|mount|mountains?|wilderness|plains?|inhabitants?|towns|villages|fields?|rivers?|brook|valley|hills?|queen|governor|province|streets?|forest|wells?|gates?|dukes?|throne|south|north|east|west|side|way|out|parts|fords|vine|vineyards|waters?|inhabiter|lords|merchants|mount) of", ""),
        ("place", "in|into|to|unto|from|at|through|throughout|toward|towards|beyond|mount|over against|by|as far as|come to|against|between|nigh", ""),
        ("person", "", "said|answered|spake|went|came|took|saw|called|dwelt|died|lived|sent|arose|rose|heard|made|gave|commanded|cried|fell|fled|reigned|’s? (?:wife|son|daughter|father|brother|mother|servants?|firstborn)"),
    )
)

# between the names of a list
LINKS = frozenset(", and or nor ; the".split())

# names of several kinds -> what they are where nothing else decides
USUAL = {
    "Judah": "people",
    "Egypt": "place",
    "Babylon": "place",
    "Moab": "people",
    "Edom": "people",
    "Ammon": "people",
    "Ephraim": "people",
    "Benjamin": "people",
    "Manasseh": "people",
    "Assyria": "place",
    "Syria": "place",
    "Canaan": "place",
    "Gilead": "place",
}
