"""Time of importing the package and of opening a checkpoint, beside transformers' own classes.

    python recipes/benchmarks/loading.py [--pairs llama bert t5 bart] [--repeats 7]

Every measurement is a process of its own, the sides alternating; medians are reported. Files are in the page cache.

    import            `import hf_llm` beside importing the four transformers classes that the pairs are made of
    from_pretrained   a checkpoint of either side with the same number of parameters, by its own class, imports not
                      counted, until a word of every page of its weights has been read
    to first logits   from the start of Python to the logits of one text: what a script waits for
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import PAIRS, build


SIDES = ("native", "ours")
IMPORT = """
import time
start = time.perf_counter()
{}
print(time.perf_counter() - start)
"""
OPEN = """
import time
import torch
from {0} import {1} as Model
start = time.perf_counter()
model = Model.from_pretrained({2!r})
for weight in model.parameters():
    weight.detach().flatten()[:: 4096 // weight.element_size()].sum()
print(time.perf_counter() - start)
ids = torch.ones(1, 8, dtype=torch.long)
with torch.no_grad():
    model(ids, **({{"decoder_input_ids": ids}} if model.config.is_encoder_decoder else {{}}))
"""


def run(code: str) -> tuple[float, float]:
    """Seconds that a script prints, and those of its whole process."""
    start = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1]), time.perf_counter() - start


def compare(codes: tuple[str, str], repeats: int) -> list[tuple[float, float, float]]:
    """Seconds of the two sides and the ratio of ours to theirs, as medians: of what is printed, and of processes."""
    runs = [[run(code) for code in codes] for _ in range(repeats + 1)][1:]  # the first fills the page cache
    found = []
    for which in range(2):
        pairs = [(native[which], ours[which]) for native, ours in runs]
        theirs, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
        found.append((theirs, mine, statistics.median(ours / native for native, ours in pairs)))
    return found


def measure_import(repeats: int) -> list[dict]:
    classes = ", ".join(type(build(name)[0]).__name__ for name in PAIRS)
    printed, _ = compare(
        (IMPORT.format(f"from transformers import {classes}"), IMPORT.format("import hf_llm")), repeats
    )
    return [row("import", "all four", None, printed)]


def measure_opening(name: str, repeats: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        codes = []
        for side, model in zip(SIDES, build(name), strict=True):
            path = f"{folder}/{side}"
            model.save_pretrained(path)
            package = "transformers" if side == "native" else "hf_llm"
            codes.append(OPEN.format(package, type(model).__name__, path))
        opening, whole = compare(tuple(codes), repeats)
    parameters = model.num_parameters()
    return [row("from_pretrained", name, parameters, opening), row("to first logits", name, parameters, whole)]


def row(task: str, pair: str, parameters: int | None, figures: tuple[float, float, float]) -> dict:
    native, ours, ratio = figures
    found = {"task": task, "pair": pair, "parameters": parameters}
    return {**found, "native_seconds": native, "seconds": ours, "ratio": ratio}


def table(results: list[dict]) -> str:
    lines = ["| task | beside | parameters | theirs, s | ours, s | ratio |", "|---|---|---:|---:|---:|---:|"]
    for r in results:
        size = f"{r['parameters'] / 1e6:.1f} M" if r["parameters"] else ""
        seconds = f"{r['native_seconds']:.3f} | {r['seconds']:.3f}"
        lines.append(f"| {r['task']} | {r['pair']} | {size} | {seconds} | {r['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    results = measure_import(arguments.repeats)
    for name in arguments.pairs:
        results += measure_opening(name, arguments.repeats)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
