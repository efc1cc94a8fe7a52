"""Peak memory of a training step with a large vocabulary, beside transformers' own classes.

    python recipes/benchmarks/memory.py [--pairs llama bert t5 bart] [--vocabulary 131072]

Both sides have the same number of parameters, bfloat16 autocast, and the same 4 rows of 512 tokens (512 on either side
of an encoder-decoder). A measurement is a process of its own: its figure is the peak of resident memory during one
forward and backward pass over what was resident before it, when the weights were there. So it counts activations,
logits, loss and gradients, and no weights, no state of the optimizer and no code (a small model of the same class has
made a step before). Sides alternate; medians are reported. Linux with glibc only.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
from pathlib import Path

import peers
import torch


ROWS = 4
MASKED = 0.15  # share of tokens that a masked language model predicts
SIDES = ("native", "ours")


def batch(stack: str, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Rows of random ids without padding, and what is to be predicted."""
    ids = torch.randint(10, peers.VOCABULARY, (rows, length))
    if stack == "encoder-decoder":
        return {"input_ids": ids, "decoder_input_ids": ids.roll(1, -1), "labels": ids}
    targets = ids if stack == "decoder" else ids.where(torch.rand(ids.shape) < MASKED, -100)
    return {"input_ids": ids, "labels": targets}


def step(model, inputs: dict[str, torch.Tensor]) -> None:
    """A forward and a backward pass."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes: `VmRSS` now, `VmHWM` at most since the peak was forgotten."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(field + ":")[1].split()[0])


def measure(name: str, side: str, vocabulary: int, rows: int, length: int, threads: int | None) -> dict[str, int]:
    """Bytes of one side of a pair: `weights`, and the `growth` of one step. Call it in a process of its own."""
    if threads:
        torch.set_num_threads(threads)
    stack = peers.PAIRS[name].stack
    build = peers.BUILDERS[SIDES.index(side)]
    step(build(name, length).train(), batch(stack, rows, 16))
    peers.VOCABULARY = vocabulary
    model = build(name, length).train()
    model.config.use_cache = False
    inputs = batch(stack, rows, length)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the small model has left goes back to the system
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before = resident("VmRSS")
    step(model, inputs)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"weights": weights, "growth": resident("VmHWM") - before}


def compare(name: str, repeats: int, *setting) -> dict:
    """Medians of one pair."""
    context = multiprocessing.get_context("spawn")
    runs = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            with context.Pool(1) as process:
                runs[side].append(process.apply(measure, (name, side, *setting)))
    native, ours = (statistics.median(run["growth"] for run in runs[side]) for side in SIDES)
    weights = runs["ours"][0]["weights"]
    return {"pair": name, "weights": weights, "native_bytes": native, "bytes": ours, "ratio": ours / native}


def table(results: list[dict]) -> str:
    lines = ["| beside | weights, MB | theirs, MB | ours, MB | ratio |", "|---|---:|---:|---:|---:|"]
    for r in results:
        sizes = " | ".join(f"{r[key] / 1e6:,.0f}" for key in ("weights", "native_bytes", "bytes"))
        lines.append(f"| {r['pair']} | {sizes} | {r['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(peers.PAIRS), choices=list(peers.PAIRS))
    parser.add_argument("--vocabulary", type=int, default=2**17)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--row-length", type=int, default=peers.ROW)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    setting = (arguments.vocabulary, arguments.rows, arguments.row_length, arguments.threads)
    results = []
    for name in arguments.pairs:
        results.append(compare(name, arguments.repeats, *setting))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    print(f"\nvocabulary {arguments.vocabulary}, {arguments.rows} x {arguments.row_length} tokens\n\n{table(results)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
