"""The report of a run, written from its own facts: loss curve, samples, model card."""

import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_llm.models.configuration import VERSION

from .samples import Sample


@dataclass
class RunFacts:
    """What a report is made of.

    Attributes:
        config: the run's configuration, as `RunConfig.to_dict` gives it.
        stack: a `Stack`.
        model_config: the model's configuration, as a dict.
        parameters: number of weights; `embedding_parameters` of them look up tokens.
        corpus: what the packed corpus says about itself (`PackedRows.report`).
        validation: the same of the validation split, or None.
        global_batch_size: rows per step.
        flops_per_token: training FLOPs per token.
        device: what it runs on, in words.
    """

    config: dict
    stack: object
    model_config: dict
    parameters: int
    embedding_parameters: int
    corpus: dict
    validation: dict
    global_batch_size: int
    flops_per_token: float
    device: str


def write_report(
    directory: Path, facts: RunFacts, history: list[dict], samples: list[Sample], template: Path | None
) -> None:
    """Write `loss_curve.png`, `samples.md`, `metrics.json` and, with a template, the model card `README.md`.

    Args:
        history: `TrainerState.log_history`.
        template: Jinja template of the card.
    """
    directory = Path(directory)
    plot_loss_curve(directory / "loss_curve.png", history, title=directory.name)
    (directory / "samples.md").write_text(samples_text(samples), encoding="utf-8")
    metrics = final_metrics(history)
    (directory / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    if template is not None:
        model_card(directory, facts, history, samples, template).save(directory / "README.md")


def final_metrics(history: list[dict]) -> dict:
    """The last training and the last evaluation figures of a log history, in one dict."""
    metrics = {}
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:
            metrics |= entry
    return metrics


def samples_text(samples: list[Sample]) -> str:
    """Prompts in bold over what became of them, as Markdown."""
    blocks = [f"**Prompt**\n\n{_fenced(s.prompt)}\n\n**Output**\n\n{_fenced(s.output)}\n" for s in samples]
    return "\n---\n\n".join(blocks) or "No samples: give the run samples.prompts.\n"


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def plot_loss_curve(path: Path, history: list[dict], title: str) -> None:
    """Training loss (as logged, and smoothed) and validation loss over steps, with tokens on a second axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    train = [(e["step"], e["loss"], e["tokens"]) for e in history if "loss" in e]
    evaluated = [(e["step"], e["eval_loss"]) for e in history if "eval_loss" in e]
    figure = Figure(figsize=(8, 4.8), dpi=150)
    axes = figure.add_axes((0.09, 0.12, 0.87, 0.7))
    if train:
        steps, losses, tokens = zip(*train, strict=True)
        axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="training, as logged")
        axes.plot(steps, smooth(losses), color="#2171b5", linewidth=1.8, label="training, smoothed")
        if steps[-1] and tokens[-1]:
            per_step = tokens[-1] / steps[-1]
            top = axes.secondary_xaxis("top", functions=(lambda s: s * per_step, lambda t: t / per_step))
            top.set_xlabel("tokens")
            top.xaxis.set_major_formatter(EngFormatter(sep=""))
    if evaluated:
        steps, losses = zip(*evaluated, strict=True)
        axes.plot(steps, losses, "o-", color="#d94801", markersize=4, linewidth=1.4, label="validation")
        axes.annotate(
            f"{losses[-1]:.3f}", (steps[-1], losses[-1]), xytext=(0, 8), textcoords="offset points", ha="right"
        )
    axes.set(xlabel="step", ylabel="loss (nats per target token)", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["right", "top"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path, format="png")


def smooth(values: tuple[float, ...], weight: float = 0.6) -> list[float]:
    """Bias-corrected exponential moving average."""
    smoothed, average, mass = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(average / mass)
    return smoothed


def model_card(
    directory: Path, facts: RunFacts, history: list[dict], samples: list[Sample], template: Path
) -> ModelCard:
    """The card, with the Hub's metadata, from the run's facts alone."""
    metrics = final_metrics(history)
    corpus = facts.config["data"]["corpus"]
    named = corpus if isinstance(corpus, str) else json.dumps(corpus)
    results = [
        EvalResult(
            task_type=facts.stack.pipeline_tag,
            dataset_type="text",
            dataset_name=f"{named}, held-out split",
            metric_type=kind,
            metric_value=round(metrics[f"eval_{kind}"], 4),
        )
        for kind in ("loss", "perplexity", "bits_per_byte")
        if f"eval_{kind}" in metrics
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=facts.stack.pipeline_tag,
        tags=["hf_llm", "pretraining", facts.stack.name],
        model_name=directory.name,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(template),
        name=directory.name,
        stack=facts.stack,
        facts=facts,
        corpus=named,
        metrics=metrics,
        evaluations=[e for e in history if "eval_loss" in e],
        model=notable_fields(facts.model_config),
        training=yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True).strip(),
        samples=[{"prompt": _fenced(s.prompt), "output": _fenced(s.output)} for s in samples],
        versions={"hf_llm": VERSION, "torch": torch.__version__, "transformers": transformers.__version__},
        python=platform.python_version(),
        duration=duration_text(metrics.get("train_seconds", 0.0)),
        flops=facts.flops_per_token * metrics.get("tokens", 0),
    )


# what a reader of a card wants to know first; the rest is in config.json
_NOTABLE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "position_embedding",
    "norm_type",
    "norm_placement",
    "qk_norm",
    "feed_forward",
    "hidden_act",
    "num_experts",
    "num_experts_per_tok",
    "sliding_window",
    "tie_word_embeddings",
)


def notable_fields(model_config: dict) -> dict:
    """The fields of a configuration that a card shows; those of sub-configurations as `encoder.hidden_size`."""
    shown = {k: model_config[k] for k in _NOTABLE if model_config.get(k) is not None}
    for part in [name for name in ("encoder", "decoder") if name in model_config]:
        for key, value in notable_fields(model_config[part]).items():
            shown[f"{part}.{key}"] = value
    return shown


def duration_text(seconds: float) -> str:
    """`3 min 20 s`, `2 h 5 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def summary_text(directory: Path, metrics: dict) -> str:
    """What a run ends with on the terminal: figures, and where things are."""
    lines = ["", f"Trained {metrics.get('tokens', 0):,} tokens in {duration_text(metrics.get('train_seconds', 0.0))}."]
    if "eval_loss" in metrics:
        bits = metrics.get("eval_bits_per_byte", math.nan)
        lines.append(
            f"Validation: loss {metrics['eval_loss']:.4f}, perplexity {metrics['eval_perplexity']:,.2f}, "
            f"{bits:.4f} bits per byte."
        )
    lines += [
        f"  {directory}/                  model and tokenizer, for from_pretrained",
        f"  {directory}/README.md         model card",
        f"  {directory}/loss_curve.png    loss curve",
        f"  {directory}/samples.md        samples",
        f"  {directory}/runs/             TensorBoard logs (tensorboard --logdir {directory}/runs)",
        f"  {directory}/checkpoint-*/     for resuming",
    ]
    return "\n".join(lines)
