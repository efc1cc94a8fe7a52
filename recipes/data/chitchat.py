"""Conversations between two strangers, and what they thought of them: the Chit-Chat Challenge of Brigham Young
University.
"""

import json
import zipfile
from collections.abc import Iterator

from datasets import Features, List, Value

from .packages import PackageFile, fetch_package


ARCHIVE = PackageFile(
    name="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    licence="MIT",
)
MESSAGES = List({"role": Value("string"), "content": Value("string")})
SCALES = ("witty", "interesting", "upbeat")
CONVERSATIONS = Features({"messages": MESSAGES, "topic": Value("string")})
RATINGS = Features(
    {
        "messages": MESSAGES,
        "topic": Value("string"),
        **dict.fromkeys(SCALES, Value("int32")),
        "rating": Value("float32"),
    }
)
NOT_RATED = 5  # where the scales stand unless somebody moves them


def conversations(minimum_turns: int = 2) -> Iterator[dict]:
    """Yields messages and topic (the question that the two were given, "" if none).

    Who begins is the user, who answers the assistant; what one of them writes in a row is one message, a line each.

    Args:
        minimum_turns: leaves out shorter conversations (in many nobody answered).
    """
    for conversation in _dataset():
        if len(conversation["messages"]) >= minimum_turns:
            yield _example(conversation)


def ratings(minimum_turns: int = 1) -> Iterator[dict]:
    """Yields messages, topic, three ratings between 1 and 10, and their mean; only where somebody gave a rating."""
    for conversation in _dataset():
        given = {scale: int(value) for scale, value in conversation.get("ratings", {}).items()}
        if len(conversation["messages"]) < minimum_turns or set(given.values()) <= {NOT_RATED}:
            continue
        scales = {scale: given[scale] for scale in SCALES}
        yield {**_example(conversation), **scales, "rating": sum(scales.values()) / len(scales)}


def _dataset() -> list[dict]:
    with zipfile.ZipFile(fetch_package(ARCHIVE)) as wheel:
        return list(json.loads(wheel.read("chitchat_dataset/dataset.json")).values())


def _example(conversation: dict) -> dict:
    first = conversation["messages"][0][0]["sender"]
    messages = [
        {
            "role": "user" if turn[0]["sender"] == first else "assistant",
            "content": "\n".join(utterance["text"].strip() for utterance in turn),
        }
        for turn in conversation["messages"]
    ]
    return {"messages": messages, "topic": conversation.get("prompt") or ""}
