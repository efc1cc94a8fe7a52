"""The report of a run, written from its own facts: curves, figures, `metrics.json`, model card."""

import fnmatch
import functools
import json
import math
import platform
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import yaml
from accelerate.utils import is_peft_model
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import Trainer, TrainingArguments

from hf_llm.models.common import VERSION

from .callbacks import measures
from .config import RunConfig


# (heading, keys of the log) of a row of curves
Panels = Sequence[tuple[str, tuple[str, ...]]]


@dataclass
class Results:
    """What a job found out about its model when training was over.

    Attributes:
        task: the Hub's name of it (`text-classification`, ...), also the card's pipeline tag.
        dataset: the data, in words, with its licence where one is known.
        metrics: final figures on held-out data, by name; a name may begin with `eval_`.
        rows: number of examples by split.
        usage: Python code that opens the model and uses it, for the card.
        about: what the model is, a sentence for the card; default: by its configuration.
        tags: of the card, beside "hf_llm".
        limits: what it should not be used for; default: what holds for all that is tuned.
        baselines: what simpler methods reach on the same held-out data: name -> metrics.
        notes: sentences for the card: how it was evaluated, what was cut.
        tables: for the card: heading -> rows, which are dicts of the same keys.
        figures: file name -> function that draws into a matplotlib `Figure`.
        files: file name -> what it holds; they have been written already.
        samples: Markdown that shows what the model does.
    """

    task: str
    dataset: str
    metrics: dict[str, float]
    rows: dict[str, int] = field(default_factory=dict)
    usage: str = ""
    about: str = ""
    tags: list[str] = field(default_factory=list)
    limits: str = ""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, list[dict]] = field(default_factory=dict)
    figures: dict[str, Callable] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    samples: str = ""


@dataclass
class RunFacts:
    """What every run knows of itself.

    Attributes:
        config: the run's configuration, as a dict.
        model_class: name of the (base) model's class.
        model_config: its configuration, as a dict.
        parameters: number of weights, of which `trainable` were trained.
        adapter: PEFT's name of the method, or None.
        global_batch_size: examples per step.
        steps: optimizer steps taken.
        flops: floating-point operations of the training.
        device: what it ran on, in words.
    """

    config: dict
    model_class: str
    model_config: dict
    parameters: int
    trainable: int
    adapter: str | None
    global_batch_size: int
    steps: int
    flops: float
    device: str

    @classmethod
    def of(cls, trainer: Trainer, config: RunConfig) -> "RunFacts":
        model = trainer.accelerator.unwrap_model(trainer.model)
        adapter = is_peft_model(model)
        return cls(
            config=config.to_dict(),
            model_class=type(model.get_base_model() if adapter else model).__name__,
            model_config=model.config.to_dict(),
            parameters=sum(p.numel() for p in model.parameters()),
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            adapter=model.active_peft_config.peft_type.value if adapter else None,
            global_batch_size=trainer.run_facts["global_batch_size"],
            steps=trainer.state.global_step,
            flops=trainer.state.total_flos,
            device=device_text(trainer.args),
        )


def write_report(
    directory: Path, facts: RunFacts, history: list[dict], results: Results, template: Path | None
) -> None:
    """Write `curves.png`, the job's figures, `metrics.json` and, with a template, the model card `README.md`.

    Args:
        history: `TrainerState.log_history`.
        template: Jinja template of the card.
    """
    draw_figures(directory, {"curves.png": functools.partial(draw_history, history=history), **results.figures})
    record = {
        **last_logs(history),
        **results.metrics,
        "baselines": results.baselines,
        "rows": results.rows,
        "parameters": facts.parameters,
        "trainable_parameters": facts.trainable,
        "steps": facts.steps,
    }
    (directory / "metrics.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    if template is not None:
        model_card(directory, facts, history, results, template).save(directory / "README.md")


def last_logs(history: list[dict]) -> dict:
    """The last training log and the last evaluation of a history, in one dict."""
    figures = {"train_seconds": 0.0}
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:
            figures |= entry
    return figures


# ---- figures --------------------------------------------------------------------------------------------------------


def draw_figures(directory: Path, figures: dict[str, Callable]) -> None:
    """Write PNG files: name -> function that draws into a matplotlib `Figure`."""
    from matplotlib.figure import Figure

    for name, draw in figures.items():
        figure = Figure(dpi=150, layout="constrained")
        draw(figure)
        figure.savefig(directory / name, format="png")


def draw_history(figure, history: list[dict], panels: Panels | None = None) -> None:
    """Draw curves over optimizer steps, of each key on training and on validation data: one panel below the other, or
    in two columns where there are more than three.

    Args:
        figure: matplotlib `Figure`.
        history: `TrainerState.log_history`, where figures on validation data are called `eval_<key>`.
        panels: headings and keys (or patterns of `fnmatch`); default: the loss, and whatever else was measured
            on validation data.
    """
    if panels is None:
        others = {name for entry in history for name in measures(entry)} - {"loss"}
        panels = [("loss", ("loss",)), *((name.replace("_", " "), (name,)) for name in sorted(others))]
    logged = sorted({key.removeprefix("eval_") for entry in history for key in entry})
    found = {heading: [key for name in names for key in fnmatch.filter(logged, name)] for heading, names in panels}
    found = {heading: keys for heading, keys in found.items() if keys} or {panels[0][0]: []}
    columns = 1 if len(found) <= 3 else 2
    rows = math.ceil(len(found) / columns)
    figure.set_size_inches(8 if columns == 1 else 11, 1 + 2.2 * rows)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    for axes, (heading, keys) in zip(grid, found.items()):
        for key in keys:
            if points := _points(history, key):
                steps, values = zip(*points)
                if key == "loss":
                    axes.plot(steps, values, color="#9ecae1", linewidth=1)
                    values = smooth(values)
                axes.plot(steps, values, linewidth=1.6, label=f"{key}, training{', smoothed' * (key == 'loss')}")
            if points := _points(history, f"eval_{key}"):
                axes.plot(*zip(*points), "o-", markersize=3.5, linewidth=1.4, label=f"{key}, validation")
        axes.set_ylabel(heading, fontsize="small")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(alpha=0.25)
        axes.spines[["right", "top"]].set_visible(False)
        if axes.lines:
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}  # above the curves
            axes.legend(frameon=False, fontsize="x-small", ncols=2, **place)
    for axes in grid[max(len(found) - columns, 0) : len(found)]:
        axes.set_xlabel("optimizer step")
        axes.tick_params(labelbottom=True)


def _points(history: list[dict], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]


def smooth(values: Sequence[float], weight: float = 0.6) -> list[float]:
    """Bias-corrected exponential moving average."""
    smoothed, average, mass = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(average / mass)
    return smoothed


# ---- texts ----------------------------------------------------------------------------------------------------------


def model_card(directory: Path, facts: RunFacts, history: list[dict], results: Results, template: Path) -> ModelCard:
    """The card, with the Hub's metadata, from the run's facts alone."""
    evaluated = [
        EvalResult(
            task_type=results.task,
            dataset_type="text",
            dataset_name=results.dataset,
            metric_type=name.removeprefix("eval_"),
            metric_value=round(value, 4),
        )
        for name, value in results.metrics.items()
    ]
    base = facts.config["model"].get("path")
    data = ModelCardData(
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag=results.task,
        base_model=None if base is None or Path(base).exists() or base.count("/") != 1 else base,
        tags=["hf_llm", *results.tags, *(["lora"] if facts.adapter == "LORA" else [])],
        model_name=directory.name,
        eval_results=evaluated or None,
    )
    last = last_logs(history)
    compared = (results.metrics, *results.baselines.values())
    return ModelCard.from_template(
        data,
        template_path=str(template),
        name=directory.name,
        base=base,
        facts=facts,
        results=results,
        last=last,
        model=notable_fields(facts.model_config),
        training=yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True).strip(),
        versions={"hf_llm": VERSION, "torch": torch.__version__, "transformers": transformers.__version__},
        python=platform.python_version(),
        duration=duration_text(last["train_seconds"]),
        columns=list(dict.fromkeys(name for figures in compared for name in figures)),
    )


# what a reader of a card wants to know first; the rest is in config.json
_NOTABLE = (
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim max_position_embeddings position_embedding norm_type norm_placement qk_norm feed_forward hidden_act "
    "num_experts num_experts_per_tok sliding_window tie_word_embeddings"
).split()


def notable_fields(model_config: dict) -> dict:
    """The fields of a configuration that a card shows; those of sub-configurations as `encoder.hidden_size`."""
    shown = {k: model_config[k] for k in _NOTABLE if model_config.get(k) is not None}
    for part in [name for name in ("encoder", "decoder") if name in model_config]:
        shown |= {f"{part}.{key}": value for key, value in notable_fields(model_config[part]).items()}
    return shown


def duration_text(seconds: float) -> str:
    """`3 min 20 s`, `2 h 5 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def device_text(args: TrainingArguments) -> str:
    """What a run runs on, in words."""
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    threads = args.world_size * torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def samples_table(history: list[dict]) -> list[dict]:
    """The samples of a history, each a row of a table in Markdown: step, prompt and output, cut at 200 characters."""
    rows = [(entry["step"], *sample) for entry in history for sample in entry.get("samples", ())]
    cells = [(step, *(textwrap.shorten(text, 200).replace("|", "\\|") for text in texts)) for step, *texts in rows]
    return [dict(zip(("step", "prompt", "output"), row, strict=True)) for row in cells]


def summary_text(directory: Path, facts: RunFacts, history: list[dict], results: Results) -> str:
    """What a run ends with on the terminal: figures, and where things are."""
    last = last_logs(history)
    what = f"{last['tokens']:,} tokens" if "tokens" in last else f"{facts.steps:,} steps"
    lines = ["", f"Trained {facts.trainable:,} parameters on {what} in {duration_text(last['train_seconds'])}."]
    for name, figures in {"Held out": results.metrics, **results.baselines}.items():
        text = ", ".join(f"{k.removeprefix('eval_').replace('_', ' ')} {v:.4f}" for k, v in figures.items())
        lines += [f"{name}: {text}."] if text else []
    files = {
        "": f"{facts.adapter + ' adapter' if facts.adapter else 'model'} and tokenizer, for from_pretrained",
        "README.md": "model card",
        "metrics.json": "the figures",
        "curves.png": "loss and measures over steps",
        **dict.fromkeys(results.figures, "figure"),
        **results.files,
        "runs/": f"TensorBoard logs (tensorboard --logdir {directory}/runs)",
        "checkpoint-*/": "for resuming",
    }
    width = max(len(f"{directory}/{name}") for name in files) + 2
    return "\n".join([*lines, *(f"  {f'{directory}/{name}':<{width}}{about}" for name, about in files.items())])
