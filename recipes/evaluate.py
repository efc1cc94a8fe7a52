"""Evaluate a checkpoint: perplexity and bits per byte, task metrics, samples.

    accelerate launch recipes/evaluate.py --model outputs/demo --data python-stdlib
    accelerate launch recipes/evaluate.py --model outputs/sentiment --data sentiment-ratings --task text-classification
    accelerate launch recipes/evaluate.py --config recipes/configs/evaluation/evaluate.yaml [--field value ...]

Prints a table, writes evaluation/TASK.json into the model's folder and the figures into its card.
"""

import sys

from hf_llm.evaluation.evaluating import EvaluationConfig, data_name, evaluate
from hf_llm.evaluation.tasks import TASKS
from hf_llm.imports import import_variants
from hf_llm.training.launching import set_cpu_threads
from hf_llm.training.settings import build_section, load_settings, parse_overrides
from studies.command import exit_status


def evaluation_config(words: list[str]) -> EvaluationConfig:
    """
    The settings of a command line: `--field value`, over those of a YAML file where `--config FILE` comes first.

    Raises:
        ValueError: unknown field, value of the wrong type, unreadable file.
    """
    if words[:1] == ["--config"] and len(words) > 1:
        return build_section(EvaluationConfig, load_settings(words[1], words[2:]))
    settings = {}
    for key, value in parse_overrides(words):
        settings[key] = str(value) if key in ("model", "output") else value
    import_variants(settings.get("imports") or ())
    return build_section(EvaluationConfig, settings)


def table(result: dict) -> str:
    """A result as text for a terminal."""
    lines = []
    if result["metrics"]:
        lines.append(f"{result['model']}: {result['task']} on {data_name(result)} ({result['rows']:,} scored)")
        width = max(map(len, result["metrics"]))
        for name, value in result["metrics"].items():
            shown = f"{value:14,.4f}" if isinstance(value, float) else f"{value:9,}"
            lines.append(f"  {name:{width}}  {shown}")
    for sample in result["samples"]:
        lines += ["-" * 80, sample["source"], f"-> {sample['prediction']}"]
    return "\n".join(lines)


def main() -> int:
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        tasks = "\n".join(f"  {name}: {task.about}" for name, task in TASKS.items())
        print(f"{__doc__}\nTasks:\n{tasks}\n{EvaluationConfig.__doc__}")
        return 0

    def job() -> None:
        config = evaluation_config(words)
        set_cpu_threads(config.cpu_threads)
        print(table(evaluate(config)))
        print(f"written to {config.output_path}")

    return exit_status(__file__, job)


if __name__ == "__main__":
    sys.exit(main())
