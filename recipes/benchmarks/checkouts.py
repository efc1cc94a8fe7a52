"""Speed of two checkouts of hf_llm beside each other, for whoever changes the core:

    git worktree add ../before HEAD~1
    python recipes/benchmarks/checkouts.py ../before [--cases decoder-rows ...] [--repeats 9] [--dtype float32]

Each side is a process of its own that imports hf_llm from its checkout; a repeat is a step of the one and then of
the other (every second time in the other order), so that whatever else the machine does slows both. Printed are the
medians in seconds and the median of the repeats' ratios, before / after: above 1, the working tree is faster.

Training cases take a full step (forward, backward, fused AdamW) of 2,048 tokens; generation cases add 48 tokens to
each prompt of 64, greedily.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


HERE = Path(__file__).resolve().parents[2]
ROWS, LENGTH, PROMPT, NEW_TOKENS = 4, 512, 64, 48
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
}
CASES = [
    *(f"{stack}-{form}" for stack in ("decoder", "encoder", "seq2seq") for form in ("rows", "documents")),
    *(f"{stack}-compiled" for stack in ("decoder", "encoder", "seq2seq")),
    *(f"generate-{stack}-{batch}" for stack in ("decoder", "seq2seq") for batch in (1, 8)),
]


def make_model(stack: str):
    """A language model of 10 to 20 million parameters with the stack's default parts."""
    import hf_llm

    if stack == "decoder":
        return hf_llm.LLMDecoderForCausalLM(hf_llm.LLMDecoderConfig(**SIZES, num_key_value_heads=2))
    if stack == "encoder":
        return hf_llm.LLMEncoderForMaskedLM(hf_llm.LLMEncoderConfig(**SIZES))
    halves = {half: SIZES | {"num_hidden_layers": 3} for half in ("encoder", "decoder")}
    config = hf_llm.LLMEncoderDecoderConfig(**halves, pad_token_id=0, decoder_start_token_id=0)
    return hf_llm.LLMEncoderDecoderForConditionalGeneration(config)


def make_batch(stack: str, packed: bool) -> dict:
    """Random ids (4, 512) on each side, each token a target; `packed`: eight documents in each row."""
    import torch

    ids = torch.randint(3, SIZES["vocab_size"], (ROWS, LENGTH))
    batch = {"input_ids": ids, "labels": ids}
    if stack == "seq2seq":
        batch["decoder_input_ids"] = ids.roll(1, -1)
    if packed:
        documents = (torch.arange(LENGTH) // (LENGTH // 8)).expand(ROWS, -1).contiguous()
        positions = (torch.arange(LENGTH) % (LENGTH // 8)).expand(ROWS, -1).contiguous()
        for side in ("", "decoder_") if stack == "seq2seq" else ("",):
            batch |= {f"{side}document_ids": documents, f"{side}position_ids": positions}
    return batch


def make_step(case: str) -> Callable[[], None]:
    """The work that a repeat times."""
    import torch

    torch.manual_seed(0)
    kind, *rest = case.split("-")
    if kind == "generate":
        stack, batch_size = rest[0], int(rest[1])
        model = make_model(stack).eval()
        model.generation_config.eos_token_id = None
        prompt = torch.randint(3, SIZES["vocab_size"], (batch_size, PROMPT))
        return lambda: model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    model = make_model(kind).train()
    model.config.use_cache = False
    batch = make_batch(kind, packed=rest[0] == "documents")
    forward = torch.compile(model) if rest[0] == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        forward(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def serve(dtype: str) -> None:
    """One side: `case` lines in, seconds out. A case is made anew, and warmed up, when its name changes."""
    import contextlib

    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    current, step = None, None
    for case in map(str.strip, sys.stdin):
        autocast = contextlib.nullcontext() if dtype == "float32" else torch.autocast("cpu", getattr(torch, dtype))
        with autocast:
            if case != current:
                current, step = case, make_step(case)
                step(), step()
            start = time.perf_counter()
            step()
        print(json.dumps(time.perf_counter() - start), flush=True)


class Side:
    """A process with hf_llm of one checkout."""

    def __init__(self, checkout: Path, dtype: str):
        environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--dtype", dtype]
        self.process = subprocess.Popen(
            command, env=environment, cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, case: str) -> float:
        print(case, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", nargs="?", type=Path, help="checkout to compare with")
    parser.add_argument("--after", type=Path, default=HERE, help="this checkout, unless another is named")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.dtype)
    if args.before is None:
        parser.error("name the checkout to compare with")
    sides = [Side(checkout.resolve(), args.dtype) for checkout in (args.before, args.after)]
    print("| case | before, s | after, s | before / after |\n|---|---:|---:|---:|")
    for case in args.cases:
        times = []
        for repeat in range(args.repeats + 1):  # the first warms both up
            order = (0, 1) if repeat % 2 else (1, 0)
            found = {side: sides[side].seconds(case) for side in order}
            times.append((found[0], found[1]))
        before, after = (statistics.median(times[1:][i][side] for i in range(args.repeats)) for side in (0, 1))
        ratio = statistics.median(b / a for b, a in times[1:])
        print(f"| {case} | {before:.3f} | {after:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
