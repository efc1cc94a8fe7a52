"""Predictions for a file of inputs: `hf-llm predict MODEL INPUT -o OUT`."""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from ..data.sources import local_files, read_files
from .tasks import Model, Row


CHUNK = 16  # batches whose inputs are sorted by length, and whose records are written at once
DELIMITERS = {".csv": ",", ".tsv": "\t"}
OUTPUTS = (".jsonl", *DELIMITERS, ".txt")


def predict_file(
    model: Model, source: str, output: str | None = None, columns: dict[str, str] | None = None, resume: bool = False
) -> int:
    """
    Write a record for each input, in order: the input's columns and what the model makes of it.

    Args:
        source: a file of lines, JSON lines, CSV, TSV or Parquet, also compressed, or a glob; "-" reads lines of text
            or JSON from standard input.
        output: a file whose suffix is one of `OUTPUTS`; a `.txt` holds predictions alone. None writes JSON lines to
            standard output. What is there already is replaced, unless `resume`.
        columns: input of the task -> name of the column, where these differ.
        resume: go on after the records that `output` holds.

    Returns:
        How many records were written.

    Raises:
        ValueError: no such file, a column that is missing, or an output of an unknown kind.
    """
    path = None if output is None else Path(output)
    if path is not None and path.suffix not in OUTPUTS:
        raise ValueError(f"-o {output}: the suffix must be one of {', '.join(OUTPUTS)}")
    if resume and path is None:
        raise ValueError("--resume needs -o OUT, the file to go on with")
    rows = read_rows(source)
    rename = resolve_columns(model, rows.column_names, columns or {})
    done = _complete_records(path) if resume and path.is_file() else 0
    if done > len(rows):
        raise ValueError(f"--resume: {output} has {done} records, and {source} only {len(rows)} inputs")
    size = model.options.batch_size * CHUNK
    with contextlib.ExitStack() as stack:
        mode = "a" if done else "w"
        file = stack.enter_context(open(path, mode, encoding="utf-8", newline="")) if path else sys.stdout
        bar = stack.enter_context(tqdm(total=len(rows), initial=done, unit="input", disable=None))
        for start in range(done, len(rows), size):
            examples = rows.select(range(start, min(start + size, len(rows)))).to_list()
            inputs = [{key: example[name] for key, name in rename.items()} for example in examples]
            _check(inputs, start)
            merged = [example | record for example, record in zip(examples, by_length(model, inputs), strict=True)]
            file.write(_text(merged, path.suffix if path else ".jsonl", header=start == 0))
            file.flush()
            bar.update(len(merged))
    return len(rows) - done


def by_length(model: Model, rows: list[Row]) -> list[Row]:
    """What the model makes of rows, in their order; texts of one batch are alike in length."""
    order = sorted(range(len(rows)), key=lambda i: -sum(len(str(value)) for value in rows[i].values()))
    records: list[Row] = [{}] * len(rows)
    for place, record in zip(order, model([rows[i] for i in order]), strict=True):
        records[place] = record
    return records


def read_rows(source: str) -> Dataset:
    """The inputs of a file, several, or standard input; each line of a text file is one, in a column `text`."""
    if source == "-":
        lines = [line.rstrip("\n") for line in sys.stdin]
        rows = [json.loads(line) if line.startswith("{") else {"text": line} for line in lines if line.strip()]
        if not rows:
            raise ValueError("-: standard input is empty")
        return Dataset.from_list(rows)
    files = local_files(source, "input")
    if not files:
        raise ValueError(f"input {source!r}: no such file")
    return read_files(source, "input", {"train": files}, text_by="line")["train"]


def resolve_columns(model: Model, names: list[str], given: dict[str, str]) -> dict[str, str]:
    """Input of the task -> name of the column. A single column will do for a single input, whatever its name is."""
    found = {}
    wanted = model.task.inputs
    if "messages" in names and wanted == ("text",) and model.task.run.__name__ == "chat" and not given:
        return {"messages": "messages"}
    for key in (*wanted, *given):
        name = given.get(key, key)
        if name not in names and key not in given and len(wanted) == len(names) == 1:
            name = names[0]
        if name not in names:
            raise ValueError(
                f"the input has no column {name!r}; it has {', '.join(names)}: name the right one by "
                f"--columns {key}=NAME"
            )
        found[key] = name
    if wanted == ("text",) and "text_pair" in names:
        found.setdefault("text_pair", "text_pair")
    return found


def _check(rows: list[Row], start: int) -> None:
    for i, row in enumerate(rows):
        for name, value in row.items():
            if not isinstance(value, str if name != "messages" else list):
                raise ValueError(f"input {start + i}: {name} is {value!r}, which is no text")


# ---- files ----------------------------------------------------------------------------------------------------------


def _text(records: list[Row], suffix: str, header: bool) -> str:
    """Records as lines of a file."""
    if suffix == ".jsonl":
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if suffix == ".txt":
        return "".join(_cell(record["prediction"]).replace("\n", " ") + "\n" for record in records)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(records[0]), delimiter=DELIMITERS[suffix], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in record.items()} for record in records)
    return file.getvalue()


def _cell(value: Any) -> str:
    """A value as text; what is no scalar is JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _complete_records(path: Path) -> int:
    """How many whole records a file holds; a torn one at its end is cut off."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    if path.suffix not in DELIMITERS:
        end = text.rfind("\n") + 1
        count = text.count("\n")
    else:
        end = count = 0
        for record in _csv_records(text):
            end += len(record)
            count += 1
    os.truncate(path, len(text[:end].encode("utf-8")))
    return max(count - (path.suffix in DELIMITERS), 0)


def _csv_records(text: str) -> Iterator[str]:
    """The records of a CSV file as they stand there, the header first; a quoted cell may have several lines."""
    record = ""
    for line in text.splitlines(keepends=True):
        record += line
        if record.endswith("\n") and record.count('"') % 2 == 0:
            yield record
            record = ""
