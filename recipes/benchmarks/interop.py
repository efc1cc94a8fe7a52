"""Time and memory of exchanging checkpoints, beside what transformers needs to load the same weights.

    python recipes/benchmarks/interop.py [--families gpt2 llama llama-2gb t5] [--repeat 5] [--cold]

Random models of about 500 MB (llama-2gb: 2 GB) are written to a temporary folder. Every measurement is a process of
its own: its time is that of the call alone, its memory the peak of resident memory over what was resident after the
imports, and after a model of the same class has been loaded once (so that code and lookup tables are not counted),
divided by the bytes of the weights.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import transformers

import hf_llm
from hf_llm.interop import folders


MODELS = {
    "gpt2": ("GPT2LMHeadModel", {}),
    "llama": (
        "LlamaForCausalLM",
        {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 10,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
        },
    ),
    "llama-2gb": (
        "LlamaForCausalLM",
        {
            "vocab_size": 32000,
            "hidden_size": 1536,
            "intermediate_size": 4096,
            "num_hidden_layers": 16,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 32128,
            "d_model": 640,
            "d_kv": 64,
            "d_ff": 2560,
            "num_layers": 8,
            "num_heads": 10,
        },
    ),
}
TINY = {
    "llama-2gb": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 1},
    "llama": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    "t5": {"d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1},
}


def open_native(native: str) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.from_pretrained(native)
    return getattr(transformers, config.architectures[0]).from_pretrained(native)


def read(model: transformers.PreTrainedModel) -> None:
    """Read a word of every page: a file that is mapped is loaded when it is read."""
    for weight in model.parameters():
        weight.detach().flatten()[:: 4096 // weight.element_size()].sum()


def native_load(native: str, ours: str, out: str) -> None:
    read(open_native(native))


def from_native(native: str, ours: str, out: str) -> None:
    read(hf_llm.from_native(native))


def import_folder(native: str, ours: str, out: str) -> None:
    folders.import_folder(native, out)


def export_folder(native: str, ours: str, out: str) -> None:
    folders.export_folder(ours, out)


def native_copy(native: str, ours: str, out: str) -> None:
    open_native(native).save_pretrained(out)


TASKS = {task.__name__: task for task in (native_load, from_native, native_copy, import_folder, export_folder)}


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache: the next to open them reads them from the disk."""
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes: `VmRSS` now, `VmHWM` at most."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(field + ":")[1].split()[0])


def measure(task: str, folder: Path) -> dict[str, float]:
    """Run a task once, in a process that has done nothing else. Returns seconds and peak bytes."""
    with tempfile.TemporaryDirectory() as out:
        TASKS[task](str(folder / "tiny"), str(folder / "tiny-ours"), out + "/out")
    with tempfile.TemporaryDirectory() as out:
        before, start = resident("VmRSS"), time.perf_counter()
        TASKS[task](str(folder / "native"), str(folder / "ours"), out + "/out")
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": resident("VmHWM") - before}


def prepare(family: str, folder: Path) -> int:
    """Write a large and a tiny random model, native and imported. Returns the bytes of the large one's weights."""
    name, sizes = MODELS[family]
    for folder_name, values in (("tiny", TINY[family]), ("native", sizes)):
        model_class = getattr(transformers, name)
        model = model_class(model_class.config_class(**values))
        model.save_pretrained(folder / folder_name)
    folders.import_folder(folder / "tiny", folder / "tiny-ours")
    folders.import_folder(folder / "native", folder / "ours")
    return sum(p.numel() * p.element_size() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeat", type=int, default=5, help="processes for each measurement; the median is taken")
    parser.add_argument("--cold", action="store_true", help="read checkpoints from the disk, not the page cache")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    context = multiprocessing.get_context("forkserver")  # which has imported everything before it forks
    print("| family | weights, MB | task | seconds | of native | peak / weights |\n|---|---:|---|---:|---:|---:|")
    for family in arguments.families:
        with tempfile.TemporaryDirectory() as folder:
            weights = prepare(family, Path(folder))
            runs = {task: [] for task in TASKS}
            for _ in range(arguments.repeat):
                for task in TASKS:
                    if arguments.cold:
                        forget(Path(folder))
                    with context.Pool(1) as process:
                        runs[task].append(process.apply(measure, (task, Path(folder))))
        for task, results in runs.items():
            seconds, peak = (statistics.median(run[key] for run in results) for key in ("seconds", "bytes"))
            like = "native_load" if task == "from_native" else "native_copy" if "folder" in task else task
            native = statistics.median(run["seconds"] for run in runs[like])
            print(
                f"| {family} | {weights / 1e6:,.0f} | {task} | {seconds:.2f} | {seconds / native:.2f} "
                f"| {peak / weights:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
