"""Lines of Python source, each token with its kind: exact labels for token classification."""

import io
import keyword
import tokenize
from collections.abc import Iterator

from datasets import ClassLabel, Features, List, Value

from .python_sources import STDLIB, sources


TAGS = ["name", "keyword", "operator", "number", "string", "comment"]
FEATURES = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=TAGS))})

_KINDS = {
    tokenize.NAME: "name",
    tokenize.OP: "operator",
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
}


def rows(packages: list[str] = (STDLIB,), maximum_words: int = 48) -> Iterator[dict]:
    """Yields words and their tags: as many whole logical lines as fit; longer lines are left out.

    Args:
        packages: where sources are taken from: "stdlib" and installed packages.
        maximum_words: tokens in an example, at most.
    """
    for text in sources(packages):
        words, tags = [], []
        for line in _logical_lines(text):
            if len(words) + len(line) > maximum_words and words:
                yield {"words": words, "tags": tags}
                words, tags = [], []
            if len(line) <= maximum_words:
                words = words + [word for word, _ in line]
                tags = tags + [tag for _, tag in line]
        if words:
            yield {"words": words, "tags": tags}


def _logical_lines(text: str) -> Iterator[list[tuple[str, str]]]:
    """(token, tag) of each logical line; strings and comments of several lines or over 80 characters are left out."""
    line = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE:
                yield line
                line = []
            elif token.type in _KINDS and len(token.string) <= 80 and "\n" not in token.string:
                kind = "keyword" if keyword.iskeyword(token.string) else _KINDS[token.type]
                line.append((token.string, kind))
    except (tokenize.TokenError, SyntaxError):
        return
