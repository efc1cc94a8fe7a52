"""Time to a held-out loss on the default corpus: ours, and LlamaForCausalLM with AdamW and a cosine.

    python recipes/benchmarks/time_to_quality.py [--budget 300] [--threads 2]

How good is Llama after `--budget` seconds of training, and after how many is ours as good? Both sides have the same
tokenizer, number of parameters, width, layers, rows of 256 tokens, batches, bfloat16 autocast, warmup, weight decay
and clipping. Beside the architecture, what differs is what their users would have:

    native   documents concatenated and cut into rows; AdamW (fused) and a cosine; the learning rate swept until the
             best one lies inside the grid
    ours     documents packed and isolated; Muon for the matrices, at a fifth of the learning rate of the rest, and a
             line to zero (https://arxiv.org/abs/2502.15938); output projections that start from zero

Learning rates follow the clock: a run of B seconds ends B seconds after its model began to be made, with its learning
rate at zero. All is counted but evaluation, and tokenizing, which is done once. On a machine that does other things as
well, `--clock cpu` counts what the processor really spent on the run: what one thread would take on an idle machine.
Evaluation: bits per byte on held-out documents, cut into rows that are read alone, in the same way for either side.

Each run is a line of `results.jsonl` in `--folder`; runs that are there already are not run again.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import hf_llm
from hf_llm.data import TrainingSamples, collate, load_corpus, make_objective, pack_corpus, train_tokenizer
from hf_llm.data.encoding import encode_texts
from hf_llm.training.optimizers import MuonWithAdamW, parameter_groups


WIDTH, LAYERS, HEADS, FEED_FORWARD = 192, 4, 3, 512
WARMUP = 0.02  # share of the budget
WEIGHT_DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Batch = dict[str, torch.Tensor]


# ---- data ----------------------------------------------------------------------------------------------------------


def open_tokenizer(folder: Path, texts: list[str], vocabulary: int) -> PreTrainedTokenizerBase:
    path = folder / f"tokenizer-{vocabulary}"
    if not path.exists():
        train_tokenizer(texts, "bpe", vocabulary, stack="decoder", show_progress=False).save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


def cut(texts: list[str], tokenizer, rows: int, length: int, seed: int) -> Iterator[Batch]:
    """Batches of all documents as one text, each followed by the end token, cut into rows and shuffled."""
    ids, _ = zip(*encode_texts(tokenizer, texts), strict=True)
    stream = np.concatenate([part for document in ids for part in (document, [tokenizer.eos_token_id])])
    cut_rows = torch.from_numpy(stream[: len(stream) // length * length].reshape(-1, length).astype(np.int64))
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(cut_rows), generator=generator).split(rows):
            yield {"input_ids": cut_rows[chosen], "labels": cut_rows[chosen]}


def packed(corpus, tokenizer, rows: int, length: int, seed: int, folder: Path) -> Iterator[Batch]:
    """Batches of documents packed into rows, each seen by itself alone."""
    objective = make_objective("causal", tokenizer, stack="decoder")
    packed_rows = pack_corpus(corpus, tokenizer, objective, length, cache_dir=folder / "rows")
    samples = TrainingSamples(packed_rows, objective, seed=seed, length=10**9)
    n = 0
    while True:
        yield collate([samples[n + i] for i in range(rows)])
        n += rows


def held_out_rows(texts: list[str], tokenizer, length: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """At most `count` rows, evenly spaced, of documents cut into pieces: ids, and the bytes that each stands for."""
    pieces = [
        (ids[start : start + length], sizes[start : start + length])
        for ids, sizes in encode_texts(tokenizer, texts)
        for start in range(0, len(ids) - 1, length)
    ]
    return [pieces[i] for i in np.linspace(0, len(pieces) - 1, min(count, len(pieces))).astype(int)]


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, rows: list[tuple[np.ndarray, np.ndarray]], batch: int = 16) -> float:
    """Every token but a row's first is predicted."""
    model.eval()
    nats, size = 0.0, 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(len(ids) for ids, _ in part)
        ids = torch.tensor(np.stack([np.pad(ids, (0, longest - len(ids))) for ids, _ in part]), dtype=torch.long)
        targets = ids.clone()
        for target, (real, _) in zip(targets, part, strict=True):
            target[len(real) :] = -100
        logits = model(input_ids=ids).logits[:, :-1].float()
        nats += F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum").item()
        size += sum(int(sizes[1:].sum()) for _, sizes in part)
    return nats / math.log(2) / size


# ---- the two sides -------------------------------------------------------------------------------------------------


def llama(vocabulary: int, length: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
    )


def ours(vocabulary: int, length: int) -> PreTrainedModel:
    """The default decoder; the width of its feed-forward takes up what grouped queries save."""

    def make(intermediate_size: int) -> PreTrainedModel:
        return hf_llm.LLMDecoderForCausalLM(
            hf_llm.LLMDecoderConfig(
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                intermediate_size=intermediate_size,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=1,
                max_position_embeddings=length,
                residual_init="zero",
            )
        )

    with torch.device("meta"):
        wanted = llama(vocabulary, length).num_parameters()
        sizes = [make(width).num_parameters() for width in (8, 16)]
    return make(8 + 8 * round((wanted - sizes[0]) / (sizes[1] - sizes[0])))


def adamw(groups: list[dict], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)


def muon(groups: list[dict], learning_rate: float) -> torch.optim.Optimizer:
    return MuonWithAdamW(groups, lr=learning_rate, matrix_lr=learning_rate / 5, momentum=0.9, betas=BETAS)


def cosine(progress: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * progress)


def linear(progress: float) -> float:
    return 1 - progress


# model, optimizer, and the share of the learning rate at a share of the time
SIDES: dict[str, tuple[Callable, Callable, Callable]] = {
    "native": (llama, adamw, cosine),
    "ours": (ours, muon, linear),
}


def train(side: str, batches: Iterator[Batch], shape: tuple[int, int], run: dict) -> tuple[PreTrainedModel, dict]:
    """A model trained for `run["budget"]` seconds, and `steps`, `seconds` and `parameters`."""
    make_model, make_optimizer, schedule = SIDES[side]
    now = CLOCKS[run["clock"]]
    start = now()
    torch.manual_seed(run["seed"])
    model = make_model(*shape).train()
    optimizer = make_optimizer(parameter_groups(model, WEIGHT_DECAY), run["learning_rate"])
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = 0
    while (progress := (now() - start) / run["budget"]) < 1:
        factor = min(progress / WARMUP, schedule(progress))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**next(batches), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return model, {"steps": steps, "seconds": now() - start, "parameters": model.num_parameters()}


# ---- the comparison ------------------------------------------------------------------------------------------------


class Runs:
    """Runs by what they are asked to be; those that a file has are not run again."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.path = arguments.folder / "results.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.done = [json.loads(line) for line in lines]
        self.corpus, held_out = (load_corpus(arguments.corpus, split) for split in ("train", "validation"))
        self.texts = self.corpus["text"][:]
        self.tokenizer = open_tokenizer(arguments.folder, self.texts, arguments.vocabulary)
        self.length = arguments.row_length
        self.held_out = held_out_rows(held_out["text"][:], self.tokenizer, self.length, arguments.held_out_rows)

    def __call__(self, side: str, learning_rate: float, budget: float, seed: int) -> float:
        """Bits per byte of a run."""
        settings = ("corpus", "vocabulary", "rows", "row_length", "held_out_rows", "threads", "clock")
        run = {"side": side, "learning_rate": learning_rate, "budget": budget, "seed": seed}
        run |= {name: getattr(self.arguments, name) for name in settings}
        for line in self.done:
            if run.items() <= line.items():
                return line["bits_per_byte"]
        rows = self.arguments.rows
        if side == "native":
            batches = cut(self.texts, self.tokenizer, rows, self.length, seed)
        else:
            batches = packed(self.corpus, self.tokenizer, rows, self.length, seed, self.arguments.folder)
        next(batches)  # tokenizes
        model, figures = train(side, batches, (len(self.tokenizer), self.length), run)
        line = {**run, **figures, "bits_per_byte": bits_per_byte(model, self.held_out)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.done.append(line)
        print(json.dumps(line), flush=True)
        return line["bits_per_byte"]

    def median(self, side: str, learning_rate: float, budget: float) -> float:
        return statistics.median(self(side, learning_rate, budget, seed) for seed in self.arguments.seeds)

    def best_learning_rate(self, side: str, grid: list[float], budget: float) -> float:
        """The best of a grid (of the first seed), which grows by factors of two until the best is inside it."""
        grid = sorted(grid)
        while True:
            losses = [self(side, rate, budget, self.arguments.seeds[0]) for rate in grid]
            best = losses.index(min(losses))
            if 0 < best < len(grid) - 1:
                return grid[best]
            grid = [grid[0] / 2, *grid] if best == 0 else [*grid, grid[-1] * 2]


def table(results: list[dict]) -> str:
    lines = [
        "| side | learning rate | seconds | bits per byte, median | as good as theirs |",
        "|---|---:|---:|---:|---|",
    ]
    for r in results:
        good = "yes" if r["bits_per_byte"] <= results[0]["bits_per_byte"] else "no"
        lines.append(
            f"| {r['side']} | {r['learning_rate']:g} | {r['budget']:g} | {r['bits_per_byte']:.3f} "
            f"| {'' if r['side'] == 'native' else good} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/time-to-quality"))
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of the native side")
    parser.add_argument("--shares", nargs="+", type=float, default=[1 / 6, 1 / 4, 1 / 3], help="of it that ours gets")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3], help="native")
    parser.add_argument("--our-learning-rate", type=float, default=1.5e-2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--corpus", default="python-stdlib")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row-length", type=int, default=256)
    parser.add_argument("--held-out-rows", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with one thread only")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error(f"--clock cpu counts the time of one thread: --threads must be 1, not {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    runs, budget = Runs(arguments), arguments.budget
    best = runs.best_learning_rate("native", arguments.learning_rates, budget)
    settings = [("native", best, budget)]
    settings += [("ours", arguments.our_learning_rate, budget * share) for share in sorted(arguments.shares)]
    results = []
    for side, rate, seconds in settings:
        found = runs.median(side, rate, seconds)
        results.append({"side": side, "learning_rate": rate, "budget": seconds, "bits_per_byte": found})
    print(f"\n{arguments.threads} threads, {arguments.clock} clock, {len(arguments.seeds)} seeds\n\n{table(results)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
