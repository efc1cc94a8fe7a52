"""Speed of `generate()` beside transformers' own classes: new tokens per second, greedy, and their ratio.

    python recipes/benchmarks/generation.py [--pairs llama t5 bart] [--prompts 1 32] [--caches dynamic static]

Both sides have the same number of parameters, layers and query heads, the same prompts (sources of an
encoder-decoder), the same number of new tokens (nothing ends early), sdpa, and the same kind of cache. A repeat is a
call of the one and then a call of the other; medians are reported, and the ratio is the median of the repeats' ratios,
so that whatever else the machine does slows both. Time is that of the whole call, the prompt included. Caches:

    dynamic    grows with the text (what generate takes unasked)
    static     of its full length from the start, eager: on a CPU, generate does not compile unless told
    compiled   the same, and every decoding step one compiled graph; the call that compiles is not measured
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from peers import PAIRS, VOCABULARY, build
from transformers import CompileConfig, PreTrainedModel


GENERATING = [name for name in PAIRS if name != "bert"]


def cache_settings(cache: str) -> dict:
    """Keywords of `generate` for a kind of cache."""
    if cache == "dynamic":
        return {}
    if cache == "static":
        return {"cache_implementation": "static", "disable_compile": True}
    compile_config = CompileConfig(mode=None)
    compile_config._compile_all_devices = True  # transformers' switch for devices other than accelerators
    return {"cache_implementation": "static", "compile_config": compile_config}


def seconds(model: PreTrainedModel, prompts: torch.LongTensor, new_tokens: int, cache: str) -> float:
    """Time of one call of `generate`."""
    start = time.perf_counter()
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        do_sample=False,
        **cache_settings(cache),
    )
    elapsed = time.perf_counter() - start
    expected = new_tokens + (1 if model.config.is_encoder_decoder else prompts.shape[1])
    assert output.shape == (len(prompts), expected), output.shape
    return elapsed


def measure(name: str, cache: str, dtype: str, prompts: int, length: int, new_tokens: int, repeats: int) -> dict:
    """Medians of one pair in one setting."""
    torch.manual_seed(0)
    torch.compiler.reset()  # a process compiles a function a few times, and then no more
    pair = build(name, length + new_tokens)
    for model in pair:
        model.eval().to(getattr(torch, dtype))
        model.generation_config.eos_token_id = None
    ids = torch.randint(10, VOCABULARY, (prompts, length))
    runs = [[seconds(model, ids, new_tokens, cache) for model in pair] for _ in range(repeats + 1)][1:]
    theirs, ours = (statistics.median(side) for side in zip(*runs, strict=True))
    return {
        "pair": name,
        "cache": cache,
        "dtype": dtype,
        "prompts": prompts,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "native_tokens_per_second": prompts * new_tokens / theirs,
        "tokens_per_second": prompts * new_tokens / ours,
        "ratio": statistics.median(other / mine for other, mine in runs),
    }


def table(results: list[dict]) -> str:
    lines = [
        "| beside | cache | dtype | prompts | theirs, tokens/s | ours, tokens/s | ratio |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for r in results:
        lines.append(
            f"| {r['pair']} | {r['cache']} | {r['dtype']} | {r['prompts']} | {r['native_tokens_per_second']:,.0f} "
            f"| {r['tokens_per_second']:,.0f} | {r['ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=GENERATING, choices=GENERATING)
    parser.add_argument(
        "--caches", nargs="+", default=["dynamic", "static"], choices=["dynamic", "static", "compiled"]
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[1, 32], help="numbers of prompts in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = []
    for cache in arguments.caches:
        for name in arguments.pairs:
            for dtype in arguments.dtypes:
                for prompts in arguments.prompts:
                    setting = (prompts, arguments.length, arguments.new_tokens, arguments.repeats)
                    results.append(measure(name, cache, dtype, *setting))
                    print(table(results[-1:]).splitlines()[-1], flush=True)
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{table(results)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
