"""Every benchmark runs, at a size of seconds; what it says about speed is not looked at."""

import argparse
import importlib
import itertools
import json
import re
from pathlib import Path

import pytest
import torch


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "benchmarks"
IN_MAKEFILE = re.search(r"^BENCHMARKS \?= (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


@pytest.fixture
def benchmark(monkeypatch):
    """Opens a benchmark by its name, as Python does that runs it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


# ---- figures in Markdown -------------------------------------------------------------------------------------------


DOCUMENT = """# Speed

`python recipes/benchmarks/speed.py --old`, 2026-01-01, of another machine:

| a | b |
|---|---:|
| 1 | 2 |

What it means: | is no table.
"""


def test_figures_replace_figures_and_nothing_else(benchmark):
    figures = benchmark("figures")
    text = figures.replace_figures(DOCUMENT, "python recipes/benchmarks/speed.py", "`new` \\1:", "| c |\n|---|\n| 3 |")
    assert text == ("# Speed\n\n`new` \\1:\n\n| c |\n|---|\n| 3 |\n\nWhat it means: | is no table.\n")
    with pytest.raises(ValueError, match="no line that begins with `python recipes/benchmarks/other.py"):
        figures.replace_figures(DOCUMENT, "python recipes/benchmarks/other.py", "", "")


def test_the_last_table_of_an_output(benchmark):
    figures = benchmark("figures")
    table = "| a | b |\n|---|---:|\n| 1 | 2 |"
    assert figures.last_table(f"| 1 | 2 |\n\n| c |\n|---|\n| 3 |\n\n2 threads\n\n{table}\n\nand so on\n") == table
    with pytest.raises(ValueError, match="no table"):
        figures.last_table("| 1 | 2 |\n")


@pytest.mark.parametrize("name", IN_MAKEFILE)
def test_make_bench_finds_the_place_of_its_figures(benchmark, name):
    text = (FOLDER / f"{name}.md").read_text()
    assert "\n| new |" in benchmark("figures").replace_figures(
        text, f"python recipes/benchmarks/{name}.py", "caption", "| new |"
    )


# ---- measurements --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_generation(benchmark, name):
    generation = benchmark("generation")
    for cache in ("dynamic", "static"):
        figures = generation.measure(name, cache, "bfloat16", prompts=2, length=4, new_tokens=2, repeats=1)
        assert min(figures["native_tokens_per_second"], figures["tokens_per_second"]) > 0
        assert f"| {name} | {cache} | bfloat16 | 2 |" in generation.table([figures])


def test_memory(benchmark, monkeypatch):
    memory, peers = benchmark("memory"), benchmark("peers")
    monkeypatch.setattr(peers, "VOCABULARY", peers.VOCABULARY)  # which a measurement changes
    found = {side: memory.measure("llama", side, 2**15, 1, 64, None) for side in memory.SIDES}
    weights = [found[side]["weights"] for side in memory.SIDES]
    assert weights[0] == pytest.approx(weights[1], rel=0.01)
    assert min(found[side]["growth"] for side in memory.SIDES) > 0.9 * weights[0]  # the gradients at least
    ours, native = (found[side]["growth"] for side in reversed(memory.SIDES))
    row = {"pair": "llama", "weights": weights[1], "native_bytes": native, "bytes": ours, "ratio": ours / native}
    assert f"| {weights[1] / 1e6:,.0f} |" in memory.table([row])


@pytest.mark.slow
def test_a_step_with_a_vocabulary_of_128k_takes_two_fifths_of_the_memory(benchmark):
    figures = benchmark("memory").compare("llama", 1, 2**17, 4, 512, 1)
    assert figures["ratio"] <= 0.4


def test_loading(benchmark):
    loading = benchmark("loading")
    wait = "import time; time.sleep({0}); print({0})"
    printed, processes = loading.compare((wait.format(0.1), wait.format(0.2)), repeats=1)
    assert printed == (0.1, 0.2, 2.0)
    assert processes[1] > 0.2
    assert "| import | all four |  | 0.100 | 0.200 | 2.00 |" in loading.table(
        [loading.row("import", "all four", None, printed)]
    )


@pytest.mark.slow
def test_loading_of_checkpoints(benchmark):
    figures = benchmark("loading").measure_opening("t5", repeats=1)
    assert [f["task"] for f in figures] == ["from_pretrained", "to first logits"]
    assert figures[1]["seconds"] > figures[0]["seconds"] > 0


# ---- time to quality -----------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path):
    for n in range(40):
        (tmp_path / f"{n}.txt").write_text(f"The {n}th document says that {n} and {n + 1} are {2 * n + 1}. " * 5)
    return {
        "--folder": str(tmp_path / "runs"),
        "--corpus": str(tmp_path / "*.txt"),
        "--json": str(tmp_path / "table.json"),
        "--vocabulary": "300",
        "--row-length": "32",
        "--threads": "1",
        "--seeds": "0",
        "--budget": "0.6",
        "--shares": "0.5",
        "--learning-rates": "1e-3",
    }


def test_time_to_quality(benchmark, arguments, monkeypatch, tmp_path):
    script = benchmark("time_to_quality")
    ticks = itertools.count()
    monkeypatch.setitem(script.CLOCKS, "wall", lambda: 0.1 * next(ticks))  # a step is a tick, on any machine
    monkeypatch.setattr(script.Runs, "best_learning_rate", lambda self, side, grid, budget: grid[0])
    monkeypatch.setattr("sys.argv", ["time_to_quality.py", *(part for pair in arguments.items() for part in pair)])
    script.main()
    lines = [json.loads(line) for line in (tmp_path / "runs" / "results.jsonl").read_text().splitlines()]
    assert [line["side"] for line in lines] == ["native", "ours"]
    sizes = [line["parameters"] for line in lines]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    for line in lines:
        assert line["steps"] > 0 and line["seconds"] >= line["budget"]
        assert 0 < line["bits_per_byte"] < 8

    monkeypatch.setattr(script, "train", None)  # finished runs are not run again
    script.main()
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["bits_per_byte"] for row in table] == [line["bits_per_byte"] for line in lines]


def test_a_clock_of_several_threads_is_refused(benchmark, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["time_to_quality.py", "--clock", "cpu", "--threads", "2"])
    with pytest.raises(SystemExit):
        benchmark("time_to_quality").main()
    assert "--threads must be 1, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(("best", "tried"), [(2.0, [1, 2, 4]), (8.0, [1, 2, 4, 8, 16]), (0.5, [0.25, 0.5, 1, 2, 4])])
def test_a_grid_of_learning_rates_grows_until_its_best_is_inside(benchmark, best, tried):
    script = benchmark("time_to_quality")

    class Runs(script.Runs):
        def __init__(self):
            self.arguments, self.tried = argparse.Namespace(seeds=[0]), set()

        def __call__(self, side, learning_rate, budget, seed):
            self.tried.add(learning_rate)
            return abs(learning_rate - best)

    runs = Runs()
    assert runs.best_learning_rate("native", [4, 1, 2], 1.0) == best
    assert sorted(runs.tried) == tried


def test_either_side_reads_all_documents(benchmark, arguments, tmp_path):
    """Cut rows hold every document and its end token, packed rows every document once."""
    script = benchmark("time_to_quality")
    corpus = script.load_corpus(arguments["--corpus"], "train")
    texts = corpus["text"][:]
    tokenizer = script.open_tokenizer(tmp_path, texts, 300)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    length = 32
    whole = sum(len(text) + 1 for text in ids)

    rows = next(script.cut(texts, tokenizer, whole // length, length, seed=0))["input_ids"]
    assert rows.shape == (whole // length, length)
    assert (rows == tokenizer.eos_token_id).sum() in (len(texts), len(texts) - 1)
    batches = script.packed(corpus, tokenizer, 1, length, 0, tmp_path)
    first = next(batches)
    assert first["input_ids"].shape == (1, length) and first["document_ids"].max() >= 0


def test_bits_per_byte_of_rows(benchmark):
    """A model that knows nothing needs log2(vocabulary) bits for every token but a row's first."""
    script = benchmark("time_to_quality")
    model = script.llama(64, 16)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    rows = [(torch.arange(n).numpy(), torch.full((n,), 3).numpy()) for n in (5, 9, 2)]
    assert script.bits_per_byte(model, rows) == pytest.approx(6 / 3)
