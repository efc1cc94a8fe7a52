"""What Python functions do, in their authors' words: summaries of code, code for a docstring, questions about
parameters.
"""

import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from datasets import Features, List, Value

from .python_sources import STDLIB, Function, functions


SUMMARIES = Features({name: Value("string") for name in ("name", "code", "summary")})
COMPLETIONS = Features({name: Value("string") for name in ("name", "prompt", "completion")})
ANSWERS = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
QUESTIONS = Features({**{name: Value("string") for name in ("id", "context", "question")}, "answers": ANSWERS})
# packages whose docstrings describe parameters in a fixed form; all are installed with hf_llm
DOCUMENTED = ("torch", "transformers", "numpy")

_BLANK_LINE = re.compile(r"\n[ ]*\n")
# an entry in Google's style: `name (type): text` or `name: text`, the text there or deeper on the next lines
_GOOGLE_ENTRY = re.compile(r"[ ]*(\*{0,2}\w+)[ ]*(?:\((?:[^()]|\([^()]*\))*\))?[ ]*:(?!:)[ ]*")
_GOOGLE_HEADING = re.compile(r"[ ]*(?:Args|Arguments|Parameters):[ ]*$")
# an entry in numpy's style: `name : type`, the text deeper on the next lines
_NUMPY_ENTRY = re.compile(r"[ ]*(\*{0,2}\w+)[ ]*:.*")
_RULE = re.compile(r"[ ]*-{4,}[ ]*$")


def summaries(packages: list[str] = (STDLIB,)) -> Iterator[dict]:
    """Yields name, code (without the docstring) and summary (the docstring's first paragraph, on one line).

    Args:
        packages: where functions are taken from: "stdlib" and installed packages.
    """
    for function in functions(packages):
        summary = " ".join(_BLANK_LINE.split(function.docstring)[0].split())
        code = textwrap.dedent(f"{function.header}\n{function.body}")
        yield {"name": function.name, "code": code, "summary": summary}


def completions(packages: list[str] = (STDLIB,)) -> Iterator[dict]:
    """Yields name, prompt (header and docstring) and completion (the body) of a function.

    Args:
        packages: where functions are taken from: "stdlib" and installed packages.
    """
    for function in functions(packages):
        header = textwrap.dedent(function.header)
        docstring = textwrap.indent(f'"""{function.docstring}"""', "    ")
        body = textwrap.indent(textwrap.dedent(function.body), "    ")
        yield {"name": function.name, "prompt": f"{header}\n{docstring}\n", "completion": f"{body}\n"}


def questions(packages: list[str] = DOCUMENTED, unanswerable_every: int = 10) -> Iterator[dict]:
    """Yields questions about parameters in SQuAD 2's columns: id, context, question, answers (text, answer_start).

    The context is a docstring; the answer, what it says of the parameter. Where the docstring says nothing of it,
    which is so for a parameter of the documented function before, `answers` is empty.

    Args:
        packages: where functions are taken from: "stdlib" and installed packages.
        unanswerable_every: every n-th documented function also gives a question without an answer; 0 for none.
    """
    seen, others, number = set(), [], 0
    for function in functions(packages):
        context = function.docstring
        spans = parameter_spans(context)
        if not spans or context in seen:
            continue
        seen.add(context)
        number += 1
        for name, start, text in spans:
            yield _question(number, function, name, {"text": [text], "answer_start": [start]})
        foreign = next((name for name in others if not re.search(rf"\b{name}\b", context)), None)
        if unanswerable_every and number % unanswerable_every == 0 and foreign is not None:
            yield _question(number, function, foreign, {"text": [], "answer_start": []})
        others = [name for name, _, _ in spans]


def _question(number: int, function: Function, parameter: str, answers: dict) -> dict:
    question = f"What is the parameter {parameter} of {function.name}?"
    return {
        "id": f"{number}-{parameter}",
        "context": function.docstring,
        "question": question,
        "answers": answers,
    }


def parameter_spans(docstring: str) -> list[tuple[str, int, str]]:
    """(parameter, start, text) of what a docstring in Google's or numpy's style says about its parameters.

    The text is the first paragraph of what is said, and `docstring[start:].startswith(text)`. A parameter counts once.
    """
    lines = docstring.splitlines()
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line) + 1)
    found = {}
    for first, last, entry_form in _parameter_sections(lines):
        margin = min((_indentation(line) for line in lines[first:last] if line.strip()), default=0)
        heads = [i for i in range(first, last) if lines[i].strip() and _indentation(lines[i]) == margin]
        for head, following in pairwise([*heads, last]):
            if entry := entry_form.match(lines[head]):
                said = docstring[offsets[head] + entry.end() : offsets[following] - 1]
                text = _BLANK_LINE.split(said.strip())[0].rstrip()
                start = offsets[head] + entry.end() + len(said) - len(said.lstrip())
                if text:
                    found.setdefault(entry[1].lstrip("*"), (start, text))
    return [(name, start, text) for name, (start, text) in found.items()]


def _parameter_sections(lines: list[str]) -> Iterator[tuple[int, int, re.Pattern]]:
    """(first line, line after the last, form of an entry) of each section about parameters."""
    for i, line in enumerate(lines):
        if _GOOGLE_HEADING.match(line):
            ends = (
                j
                for j in range(i + 1, len(lines))
                if lines[j].strip() and _indentation(lines[j]) <= _indentation(line)
            )
            yield i + 1, next(ends, len(lines)), _GOOGLE_ENTRY
        elif line.strip() == "Parameters" and i + 1 < len(lines) and _RULE.match(lines[i + 1]):
            rules = (j - 1 for j in range(i + 3, len(lines)) if _RULE.match(lines[j]))
            yield i + 2, next(rules, len(lines)), _NUMPY_ENTRY


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())
