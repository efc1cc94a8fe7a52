"""The report of a tuning run, written from its own facts: curves, figures, `metrics.json`, model card."""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel
from transformers import Trainer

from hf_llm.training.callbacks import BOOKKEEPING
from hf_llm.training.report import duration_text, notable_fields, smooth


@dataclass
class Results:
    """What a job found out about its model when training was over.

    Attributes:
        task: the Hub's name of it (`text-classification`, ...), also the card's pipeline tag.
        dataset: the data, in words, with its licence where one is known.
        metrics: final figures on held-out data, by name.
        rows: number of examples by split.
        usage: Python code that opens the model and uses it, for the card.
        baselines: what simpler methods reach on the same held-out data: name -> metrics.
        notes: sentences for the card: how it was evaluated, what was cut.
        figures: file name -> function that draws into a matplotlib `Figure`.
        files: file name -> what it holds; they have been written already.
        samples: Markdown that shows what the model does.
    """

    task: str
    dataset: str
    metrics: dict[str, float]
    rows: dict[str, int] = field(default_factory=dict)
    usage: str = ""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Callable] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    samples: str = ""


@dataclass
class RunFacts:
    """What every tuning run knows of itself.

    Attributes:
        config: the run's configuration, as a dict.
        model_class: name of the (base) model's class.
        model_config: its configuration, as a dict.
        parameters: number of weights, of which `trainable` were trained.
        adapter: PEFT's name of the method, or None.
        global_batch_size: examples per step.
        steps: optimizer steps taken.
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
    device: str

    @classmethod
    def of(cls, trainer: Trainer, config) -> "RunFacts":
        from .running import device_text

        model = trainer.accelerator.unwrap_model(trainer.model)
        adapter = isinstance(model, PeftModel)
        return cls(
            config=config.to_dict(),
            model_class=type(model.get_base_model() if adapter else model).__name__,
            model_config=model.config.to_dict(),
            parameters=sum(p.numel() for p in model.parameters()),
            trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
            adapter=model.active_peft_config.peft_type.value if adapter else None,
            global_batch_size=trainer.run_facts["global_batch_size"],
            steps=trainer.state.global_step,
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
    from matplotlib.figure import Figure

    for name, draw in {"curves.png": lambda figure: draw_curves(figure, history), **results.figures}.items():
        figure = Figure(dpi=150, layout="constrained")
        draw(figure)
        figure.savefig(directory / name, format="png")
    record = {
        **results.metrics,
        "baselines": results.baselines,
        "rows": results.rows,
        "parameters": facts.parameters,
        "trainable_parameters": facts.trainable,
        "steps": facts.steps,
        "train_seconds": train_seconds(history),
    }
    (directory / "metrics.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    if template is not None:
        model_card(directory, facts, history, results, template).save(directory / "README.md")


def train_seconds(history: list[dict]) -> float:
    """Seconds of training, evaluation and saving left out."""
    return max((entry["train_seconds"] for entry in history if "train_seconds" in entry), default=0.0)


def draw_curves(figure, history: list[dict]) -> None:
    """Training and validation loss over steps; beside them what else was measured on the validation split."""
    evaluations = [e for e in history if any(k.startswith("eval_") for k in e)]
    names = {k for e in evaluations for k, v in e.items() if k.startswith("eval_") and isinstance(v, (int, float))}
    measures = sorted(k for k in names if k != "eval_loss" and k.removeprefix("eval_") not in BOOKKEEPING)
    figure.set_size_inches(10 if measures else 6, 4.2)
    loss, *other = figure.subplots(1, 2 if measures else 1, squeeze=False)[0]
    train = [(e["step"], e["loss"]) for e in history if "loss" in e]
    if train:
        steps, losses = zip(*train, strict=True)
        loss.plot(steps, losses, color="#9ecae1", linewidth=1, label="training, as logged")
        loss.plot(steps, smooth(losses), color="#2171b5", linewidth=1.8, label="training, smoothed")
    if any("eval_loss" in e for e in evaluations):
        points = [(e["step"], e["eval_loss"]) for e in evaluations if "eval_loss" in e]
        loss.plot(*zip(*points), "o-", color="#d94801", markersize=4, label="validation")
    loss.set(xlabel="step", ylabel="loss")
    for axes in other:
        for name in measures:
            points = [(e["step"], e[name]) for e in evaluations if name in e]
            axes.plot(*zip(*points), "o-", markersize=4, label=name.removeprefix("eval_").replace("_", " "))
        axes.set(xlabel="step", ylabel="validation")
    for axes in (loss, *other):
        axes.grid(alpha=0.25)
        axes.spines[["right", "top"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)


def model_card(directory: Path, facts: RunFacts, history: list[dict], results: Results, template: Path) -> ModelCard:
    """The card, with the Hub's metadata, from the run's facts alone."""
    evaluated = [
        EvalResult(
            task_type=results.task,
            dataset_type="text",
            dataset_name=results.dataset,
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in results.metrics.items()
    ]
    base = facts.config["model"]["path"]
    data = ModelCardData(
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag=results.task,
        base_model=None if base is None or Path(base).exists() or base.count("/") != 1 else base,
        tags=["hf_llm", *(["lora"] if facts.adapter == "LORA" else [])],
        model_name=directory.name,
        eval_results=evaluated or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(template),
        name=directory.name,
        base=base,
        facts=facts,
        results=results,
        model=notable_fields(facts.model_config),
        training=yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True).strip(),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        python=platform.python_version(),
        duration=duration_text(train_seconds(history)),
        columns=sorted({name for metrics in results.baselines.values() for name in metrics} | set(results.metrics)),
    )


def summary_text(directory: Path, facts: RunFacts, results: Results) -> str:
    """What a run ends with on the terminal: figures, and where things are."""
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in results.metrics.items())
    what = f"{facts.adapter} adapter" if facts.adapter else "model"
    lines = ["", f"Trained {facts.trainable:,} of {facts.parameters:,} parameters in {facts.steps:,} steps."]
    lines += [f"Held out: {figures}."] if figures else []
    for name, metrics in results.baselines.items():
        lines.append(f"  {name}: " + ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in metrics.items()))
    files = {
        "": f"{what} and tokenizer, for from_pretrained",
        "README.md": "model card",
        "metrics.json": "the figures",
        "curves.png": "loss and measures over steps",
        **dict.fromkeys(results.figures, "figure"),
        **results.files,
        "runs/": "TensorBoard logs",
    }
    width = max(len(f"{directory}/{name}") for name in files) + 2
    return "\n".join([*lines, *(f"  {f'{directory}/{name}':<{width}}{about}" for name, about in files.items())])
