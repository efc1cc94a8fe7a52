"""Training speed beside transformers' own classes: real tokens per second of a full step, and their ratio.

    python recipes/benchmarks/training.py [--pairs llama bert t5 bart] [--settings rows compiled documents]

Both sides have the same number of parameters, bfloat16 autocast, no dropout, fused AdamW, the same rows and threads.
A repeat is a step of the one and then a step of the other; medians are reported, and the ratio is the median of the
repeats' ratios, so that whatever else the machine does slows both. Each side is a process of its own, as when somebody
trains it: in one process, memory that the one side has freed is there for the other, which would have to ask the
system for it. Settings:

    rows       4 full rows of 512 tokens (512 on either side of an encoder-decoder), eager
    compiled   the same through torch.compile
    documents  functions of the Python standard library (source; source -> docstring): ours packed and isolated; BERT,
               T5 and BART padded to the longest of a shuffled batch; Llama concatenated and cut, where documents see
               each other. `--row-length` is that of ours and of Llama.

Only tokens that are no padding count. The peak is that of a large bfloat16 matrix product, measured here; what a step
needs of it is counted by PaLM's convention, attention over the documents that tokens are of.
"""

import argparse
import ast
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from peers import BUILDERS, PAIRS, ROW, VOCABULARY, build_ours

from hf_llm.data import load_corpus, train_tokenizer
from hf_llm.data.packing import best_fit
from hf_llm.models.visibility import Documents
from hf_llm.training.throughput import flops_per_token, peak_flops


ROWS = 4
MASKED = 0.15  # share of tokens that a masked language model predicts
WARMUP = 2
Batch = dict[str, torch.Tensor]
Document = tuple[list[int], list[int]]  # ids of source and target; models with one side take the source


# ---- batches -------------------------------------------------------------------------------------------------------


def with_labels(stack: str, batch: Batch) -> Batch:
    """Add labels where they follow from the inputs; tokens that are padding are none."""
    if stack == "encoder-decoder":
        return batch
    real = batch.get("document_ids", batch.get("attention_mask", torch.ones_like(batch["input_ids"])) - 1) >= 0
    if stack == "encoder":
        real &= torch.rand(real.shape) < MASKED
    return {**batch, "labels": batch["input_ids"].where(real, -100)}


def full_rows(stack: str, length: int) -> Iterator[Batch]:
    """Rows of random ids without padding, the same for either side."""
    while True:
        batch = {"input_ids": torch.randint(10, VOCABULARY, (ROWS, length))}
        if stack == "encoder-decoder":
            targets = torch.randint(10, VOCABULARY, (ROWS, length))
            batch |= {"decoder_input_ids": targets.roll(1, -1), "labels": targets}
        yield with_labels(stack, batch)


def functions(stack: str) -> list[Document]:
    """Functions of the standard library with a docstring, as ids, in a fixed random order; at most 512 tokens each."""
    texts = []
    for text in load_corpus("python-stdlib", "train")["text"]:
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError):  # prose
            continue
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and (summary := ast.get_docstring(node)):
                texts.append((ast.get_source_segment(text, node), summary))
    every = (side for pair in texts for side in pair)
    tokenizer = train_tokenizer(every, "bpe", VOCABULARY, stack=stack, show_progress=False)
    end = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    ids = lambda text: [*tokenizer(text, add_special_tokens=False)["input_ids"][: ROW - 1], end]  # noqa: E731
    order = np.random.default_rng(0).permutation(len(texts))
    return [(ids(texts[i][0]), ids(texts[i][1])) for i in order]


def padded(stack: str, documents: list[Document], size: int) -> Iterator[Batch]:
    """Batches of `size` documents as they come, padded to the longest."""
    for start in range(0, len(documents) - size, size):
        sources, targets = zip(*documents[start : start + size], strict=True)
        ids, mask = _pad(sources, 0), _pad([[1] * len(s) for s in sources], 0)
        batch = {"input_ids": ids, "attention_mask": mask}
        if stack == "encoder-decoder":
            batch |= {"decoder_input_ids": _pad([[0, *t[:-1]] for t in targets], 0), "labels": _pad(targets, -100)}
        yield with_labels(stack, batch)


def concatenated(documents: list[Document], rows: int, length: int) -> Iterator[Batch]:
    """All documents as one text, cut into rows."""
    stream = torch.tensor([token for source, _ in documents for token in source])
    for batch in stream[: len(stream) // (rows * length) * rows * length].view(-1, rows, length):
        yield {"input_ids": batch, "labels": batch}


def packed(stack: str, documents: list[Document], rows: int, length: int) -> Iterator[Batch]:
    """Documents packed into rows of `length` (on either side of an encoder-decoder), each seen by itself alone."""
    both = stack == "encoder-decoder"
    lengths = np.array([[len(s), len(t)] if both else [len(s)] for s, t in documents])
    filled = best_fit(lengths, (length,) * lengths.shape[1])
    order = np.random.default_rng(1).permutation(len(filled))
    for start in range(0, len(order) - rows, rows):
        chosen = [[documents[i] for i in filled[row]] for row in order[start : start + rows]]
        batch = _row_tensors([[s for s, _ in row] for row in chosen], length)
        if both:
            target = _row_tensors([[[0, *t[:-1]] for _, t in row] for row in chosen], length)
            batch |= {f"decoder_{name}": tensor for name, tensor in target.items()}
            labels = [[token for _, t in row for token in t] for row in chosen]
            batch["labels"] = _pad(labels, -100, length)
        yield with_labels(stack, batch)


def _row_tensors(rows: list[list[list[int]]], length: int) -> Batch:
    return {
        "input_ids": _pad([[t for d in row for t in d] for row in rows], 0, length),
        "position_ids": _pad([[i for d in row for i in range(len(d))] for row in rows], 0, length),
        "document_ids": _pad([[n for n, d in enumerate(row) for _ in d] for row in rows], -1, length),
    }


def _pad(rows, value: int, length: int = 0) -> torch.LongTensor:
    length = max(length, *map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def real_tokens(batch: Batch) -> int:
    """Tokens of a batch that are no padding, on both sides of an encoder-decoder."""
    if "decoder_input_ids" in batch:
        return _real(batch, "") + int((batch["labels"] != -100).sum())
    return _real(batch, "")


def _real(batch: Batch, prefix: str) -> int:
    if "document_ids" in batch:
        return int((batch["document_ids"] >= 0).sum())
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def attended(batch: Batch) -> float:
    """Mean length of what a token of a batch attends to: its document, or its row."""
    if "document_ids" not in batch:
        return float(batch["input_ids"].shape[1])
    documents = Documents(batch["document_ids"])
    lengths = documents.lengths(documents, keep_padding=False)[0].double()
    return float(lengths.square().sum() / lengths.sum())


# ---- measuring -----------------------------------------------------------------------------------------------------


def train(name: str, side: int, compiled: bool, length: int, batches: list[Batch], connection) -> None:
    """The process of one side: a step, and its real tokens per second sent, each time that it is asked."""
    torch.set_num_threads(connection.recv())
    torch.manual_seed(0)
    model = BUILDERS[side](name, max(length, ROW)).train()
    model.config.use_cache = False
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for batch in batches:
        connection.recv()
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        connection.send(real_tokens(batch) / (time.perf_counter() - start))


class Trainee:
    """A side, from here; `step()` gives its real tokens per second."""

    def __init__(self, name: str, side: int, compiled: bool, length: int, batches: list[Batch]):
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=train, args=(name, side, compiled, length, batches, there), daemon=True)
        self.process.start()
        there.close()
        self.connection.send(torch.get_num_threads())

    def step(self) -> float:
        self.connection.send(None)
        return self.connection.recv()


def measure(name: str, setting: str, repeats: int, length: int, peak: float) -> dict:
    """Medians of one pair in one setting."""
    torch.manual_seed(0)
    stack, steps = PAIRS[name].stack, repeats + WARMUP
    if setting == "documents":
        documents = functions(stack)
        rows = max(ROWS * ROW // length, 1)
        theirs = concatenated(documents, rows, length) if stack == "decoder" else padded(stack, documents, 4 * ROWS)
        batches = [list(islice(source, steps)) for source in (theirs, packed(stack, documents, rows, length))]
    else:
        batches = [list(islice(full_rows(stack, length), steps))] * 2
    pair = [Trainee(name, side, setting == "compiled", length, batches[side]) for side in (0, 1)]
    rates = [[trainee.step() for trainee in pair] for _ in range(steps)][WARMUP:]
    for trainee in pair:
        trainee.process.join()
    with torch.device("meta"):
        ours = build_ours(name, max(length, ROW))
    reach = statistics.mean(attended(batch) for batch in batches[1])
    medians = [statistics.median(rate) for rate in zip(*rates, strict=True)]
    return {
        "pair": name,
        "setting": setting,
        "row_length": length,
        "parameters": ours.num_parameters(),
        "native_tokens_per_second": medians[0],
        "tokens_per_second": medians[1],
        "ratio": statistics.median(mine / other for other, mine in rates),
        "share_of_peak": medians[1] * flops_per_token(ours, reach) / peak,
    }


def table(results: list[dict]) -> str:
    lines = [
        "| beside | setting | row | parameters | theirs, tokens/s | ours, tokens/s | ratio | ours, share of peak |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        lines.append(
            f"| {r['pair']} | {r['setting']} | {r['row_length']} | {r['parameters'] / 1e6:.1f} M "
            f"| {r['native_tokens_per_second']:,.0f} | {r['tokens_per_second']:,.0f} | {r['ratio']:.2f} "
            f"| {r['share_of_peak']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--settings", nargs="+", default=["rows", "compiled", "documents"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--row-length", type=int, default=ROW)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results, peak = [], peak_flops(torch.device("cpu"), torch.bfloat16)
    for setting in arguments.settings:
        for name in arguments.pairs:
            results.append(measure(name, setting, arguments.repeats, arguments.row_length, peak))
            print(table(results[-1:]).splitlines()[-1], flush=True)
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{table(results)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
