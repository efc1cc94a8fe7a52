"""Many small pretraining runs that belong together, each done once: what ablations and scaling laws are made of."""

import contextlib
import copy
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from hf_llm.data import load_corpus, train_tokenizer
from hf_llm.training.config import PretrainingConfig
from hf_llm.training.pretraining import Pretraining, build_model_config, pretrain
from hf_llm.training.report import draw_figures
from hf_llm.training.stacks import stack_of
from hf_llm.training.throughput import flops_per_token

from .command import Stopped


FINISHED = "cell.json"  # in a finished cell's folder: its settings and figures


def checked(settings: dict) -> PretrainingConfig:
    """Settings of a run, which need not say where it goes, as its configuration."""
    return Pretraining.from_dict({"output_dir": "", **settings})


def with_values(settings: dict, values: dict) -> dict:
    """A copy of nested settings with other values: dotted field -> value."""
    changed = copy.deepcopy(settings)
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        section = changed
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return changed


def with_fields(settings: dict, fields: dict) -> dict:
    """A copy of settings with other fields of the model."""
    return with_values(settings, {f"model.{name}": value for name, value in fields.items()})


def share_tokenizer(settings: dict, folder: Path) -> dict:
    """
    The settings with the path of a tokenizer, trained once on the corpus of `settings` and kept in `folder`, so that
    all runs have the same vocabulary.

    Raises:
        ValueError: wrong settings, or several processes: they would get in each other's way.
    """
    if (processes := PartialState().num_processes) > 1:
        raise ValueError(f"{processes} processes were launched: studies of many small runs take one process")
    config = checked(settings)
    if config.tokenizer.path is not None:
        return settings
    made_with = {**vars(config.tokenizer), "corpus": config.data.corpus}
    note = folder / "made_with.json"
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != made_with:
        columns = ("source", "target") if config.objective["name"] == "supervised" else None
        corpus = load_corpus(config.data.corpus, held_out_fraction=config.data.held_out_fraction, columns=columns)
        stack = stack_of(CONFIG_MAPPING[config.model["model_type"]]).name
        texts = itertools.chain.from_iterable(zip(*[corpus[name] for name in corpus.column_names], strict=True))
        algorithm, size = config.tokenizer.algorithm, config.tokenizer.vocab_size
        train_tokenizer(texts, algorithm, size, stack=stack, show_progress=False).save_pretrained(folder)
        note.write_text(json.dumps(made_with), encoding="utf-8")
    return {**settings, "tokenizer": {"path": str(folder)}}


def model_of(settings: dict) -> PreTrainedModel:
    """The model of a run on the meta device, for counting. Its tokenizer must have a path."""
    config = checked(settings)
    model_config = build_model_config(config, AutoTokenizer.from_pretrained(config.tokenizer.path))
    with torch.device("meta"):
        return stack_of(model_config).auto_class.from_config(model_config)


def size_of(settings: dict) -> dict[str, float]:
    """`parameters`, those of them that are not in embeddings, and training FLOPs per token and in all."""
    config, model = checked(settings), model_of(settings)
    embeddings = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    per_token = flops_per_token(model, config.data.row_length)
    return {
        "parameters": model.num_parameters(),
        "non_embedding_parameters": model.num_parameters() - sum(embeddings.values()),
        "flops_per_token": per_token,
        "flops": per_token * tokens_of(config),
    }


def tokens_of(config: PretrainingConfig) -> int:
    """Tokens of a run's rows, the little padding included."""
    training = config.training
    rows = training.get("global_batch_size") or training.get("per_device_train_batch_size", 8) * training.get(
        "gradient_accumulation_steps", 1
    )
    return training["max_steps"] * rows * (config.data.row_length + (config.data.target_row_length or 0))


def run_cell(settings: dict, folder: Path) -> dict[str, float]:
    """
    Train one cell, unless it is finished; one that was interrupted goes on.

    Args:
        settings: of a pretraining run, without `output_dir`.
        folder: of the run.

    Returns:
        Its final metrics (`eval_loss`, `eval_bits_per_byte`, `tokens`, ...) and `size_of`.

    Raises:
        Stopped: by a signal.
        ValueError: the settings are wrong, or the folder holds another run.
    """
    note = folder / FINISHED
    if note.is_file():
        finished = json.loads(note.read_text(encoding="utf-8"))
        if finished["settings"] == settings:
            return finished["metrics"]
        raise ValueError(f"{folder} holds a run with other settings; choose another output_dir or remove it")
    disable_progress_bar()
    config = Pretraining.from_dict({**settings, "output_dir": str(folder)})
    with contextlib.redirect_stdout(io.StringIO()):  # a run's own summary
        received = pretrain(config)
    if received is not None:
        raise Stopped(received)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8")) | size_of(settings)
    note.write_text(json.dumps({"settings": settings, "metrics": metrics}, indent=2), encoding="utf-8")
    return metrics


def quiet(settings: dict) -> dict:
    """The settings of a run of which only the final figures are wanted: one evaluation, one checkpoint, no samples."""
    steps = settings["training"]["max_steps"]
    once = {"eval_steps": steps, "save_steps": steps, "save_total_limit": 1, "disable_tqdm": True, "report_to": "none"}
    silent = {k: v for k, v in settings.items() if k not in ("samples", "output_dir")}
    return {**silent, "training": {**settings["training"], **once}}


def save_results(folder: Path, name: str, result: dict, table: str, draw: Callable) -> None:
    """Write a study's results as `name.json`, `name.md` and `name.png`. `draw` takes a matplotlib `Figure`."""
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    (folder / f"{name}.md").write_text(table, encoding="utf-8")
    draw_figures(folder, {f"{name}.png": draw})
