"""Run a benchmark and put its table into the Markdown file beside it.

    python recipes/benchmarks/figures.py recipes/benchmarks/memory.py [its arguments]

In `memory.md`, the line that begins with the command, and everything to the end of the table below it, are replaced by
the command as it was run now, the date, the machine, and the table that the script printed last. Text before and after
stays, and what it says has to be looked at again.
"""

import datetime
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from hf_llm.training.launching import available_cores


def last_table(output: str) -> str:
    """The last Markdown table of a text. Raises ValueError if there is none."""
    tables = re.findall(r"^\|.*\n\|[-:| ]+\|\n(?:\|.*(?:\n|$))+", output, re.MULTILINE)
    if not tables:
        raise ValueError("The benchmark printed no table.")
    return tables[-1].rstrip()


def machine() -> str:
    """The cores that this process may use, and the name of the processor."""
    listed = Path("/proc/cpuinfo")  # of Linux
    names = re.findall(r"model name\s*: (.*)", listed.read_text(encoding="utf-8") if listed.exists() else "")
    return f"{available_cores()} CPU cores ({names[0] if names else platform.processor() or platform.machine()})"


def replace_figures(text: str, command: str, caption: str, table: str) -> str:
    """`text` with its block of figures, from the line that begins with `command` in backquotes to the end of the next
    table, replaced. Raises ValueError if it has none."""
    begin = re.escape(f"`{command}")
    block = re.compile(rf"^{begin}.*?\n(?:(?!\|).*\n)*(?:\|.*(?:\n|$))+", re.MULTILINE)
    if not block.search(text):
        raise ValueError(f"There is no line that begins with `{command}, and a table below it, to be replaced.")
    return block.sub(lambda _: f"{caption}\n\n{table}\n", text, count=1)


def main(script: str, *arguments: str) -> None:
    process = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait():
        sys.exit(process.returncode)
    name = f"python recipes/benchmarks/{Path(script).name}"
    command = " ".join((name, *arguments))
    today = datetime.date.today().isoformat()
    caption = f"`{command}`, {today}, {machine()}, {torch.get_num_threads()} threads unless told, "
    caption += f"torch {torch.__version__.partition('+')[0]}:"
    markdown = Path(script).with_suffix(".md")
    text = replace_figures(markdown.read_text(encoding="utf-8"), name, caption, last_table("".join(lines)))
    markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
