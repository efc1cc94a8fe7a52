"""The configuration of `recipes/seq2seq.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, Seq2SeqTrainingArguments

from hf_llm.training.arguments import OptimizerArguments
from hf_llm.training.config import TokenizerSection, check_model_fields
from hf_llm.training.settings import check_keys, suggestion

from .config import ModelSection, TuningConfig, load_tuning_config
from .generated import BASELINES, METRICS


# task -> what it is measured by unless the configuration says otherwise
TASK_METRICS = {"translation": ["bleu", "chrf"], "summarization": ["rouge"]}
_COUNTS = ("num_beams", "max_new_tokens", "num_return_sequences", "num_beam_groups")  # of `generation`
MANAGED = {
    "optim": "use training.optimizer",
    "optim_args": "use training.optimizer and its settings",
    "predict_with_generate": "a run always generates when it evaluates",
    "generation_max_length": "use data.max_target_length",
    "generation_num_beams": "use generation.num_beams",
    "generation_config": "use the section generation",
    "remove_unused_columns": "batches hold exactly what the model takes",
    "prediction_loss_only": "evaluation reports the metrics of the task",
    "label_names": "the target is the label",
    "sortish_sampler": "use training.train_sampling_strategy: group_by_length",
}


@dataclass
class Seq2SeqArguments(OptimizerArguments, Seq2SeqTrainingArguments):
    """Fields of `Seq2SeqTrainingArguments`, and the optimizer by name: from nothing, Muon learns in fewer steps."""


@dataclass
class Seq2SeqModel(ModelSection):
    """A checkpoint (`path`), or a model from nothing (`new`: `model_type` and fields of its configuration class)."""

    path: str | None = None
    new: dict | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.path is None) == (self.new is None):
            raise ValueError("model: give either model.path, a checkpoint, or model.new, the fields of a new model")
        if self.new is not None:
            check_model_fields(self.new)


@dataclass
class TaskSection:
    """
    Attributes:
        name: "translation" or "summarization".
        metrics: names of `generated.METRICS`; default: what the task is commonly measured by.
        baselines: names of `generated.BASELINES`, scored on the same test examples.
    """

    name: str = "translation"
    metrics: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=lambda: ["nearest neighbour"])

    def __post_init__(self):
        if self.name not in TASK_METRICS:
            raise ValueError(f"task.name = {self.name!r} is unknown{suggestion(self.name, TASK_METRICS)}")
        self.metrics = self.metrics or TASK_METRICS[self.name]
        for key, legal in {"metrics": METRICS, "baselines": BASELINES}.items():
            for name in getattr(self, key):
                if name not in legal:
                    raise ValueError(f"task.{key} has {name!r}{suggestion(name, legal)}")


@dataclass
class PairsSection:
    """
    Attributes:
        dataset: anything that `hf_llm.data.tasks.load_task` takes.
        source, target: columns of the texts.
        prefix: before every source ("translate English to Spanish: ").
        separator: between source and target, where a decoder goes on from the source.
        max_source_length, max_target_length: in tokens; what is longer is cut, and reported.
        max_train_samples, max_validation_samples, max_test_samples: take that many examples of a split, drawn once.
            Validation is for evaluations while training, test for the final figures.
    """

    source: str
    target: str
    dataset: Any = "verses-en-es"
    prefix: str = ""
    separator: str = "\n"
    max_source_length: int = 128
    max_target_length: int = 128
    max_train_samples: int | None = None
    max_validation_samples: int | None = 256
    max_test_samples: int | None = None

    def __post_init__(self):
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) < 2:
                raise ValueError(f"data.{name} = {getattr(self, name)}: must be at least 2, a token and an end")


@dataclass(kw_only=True)
class Seq2SeqConfig(TuningConfig):
    """
    Attributes:
        model: a checkpoint, or a new model.
        tokenizer: how the tokenizer of a new model is trained, on sources and targets of the training split, unless
            `model.tokenizer` names one.
        data: the pairs.
        task: what is measured.
        generation: fields of transformers' `GenerationConfig` for the final figures and the saved model;
            while training, the model is evaluated greedily.
    """

    model: Seq2SeqModel
    data: PairsSection
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    task: TaskSection = field(default_factory=TaskSection)
    generation: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.model.new is not None and self.peft is not None:
            raise ValueError("peft: an adapter needs a model.path, weights that have learned something")
        check_keys(self.generation, GenerationConfig().to_dict(), "generation")
        for name, value in self.generation.items():
            if name in _COUNTS and value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"generation.{name} = {value!r}: must be a whole number, at least 1")


def load_seq2seq_config(path: str | Path, overrides: list[str] = ()) -> Seq2SeqConfig:
    """The run that a YAML file and `--section.field value` overrides describe. ValueError names what is wrong."""
    return load_tuning_config(Seq2SeqConfig, Seq2SeqArguments, path, overrides, MANAGED)
