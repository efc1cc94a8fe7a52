"""Translation and summarisation: a target text from a source text, by an encoder-decoder or a decoder."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EvalPrediction,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from hf_llm.data import check_vocabulary
from hf_llm.metrics import METRICS
from hf_llm.training.arguments import OptimizerArguments
from hf_llm.training.config import TokenizerSection, check_model_fields, new_model_config
from hf_llm.training.opening import ModelSection, is_encoder_decoder, open_config, open_tokenizer, text_limit
from hf_llm.training.optimizers import OptimizerByName
from hf_llm.training.pretraining import kept_tokenizer
from hf_llm.training.report import Results
from hf_llm.training.settings import check_keys, suggestion

from . import baselines
from .job import TuningConfig, TuningMixin, TuningRun, usage
from .pairs import PairCollator, PairsData, encode_pairs, report_cuts
from .task import IGNORED


# our name -> module of the metric, and figures by name from what it computes; all between 0 and 100, as papers do
TEXT_METRICS: dict[str, tuple[str, Callable[[dict], dict[str, float]]]] = {
    "bleu": ("sacrebleu", lambda found: {"bleu": found["score"]}),
    "chrf": ("chrf", lambda found: {"chrf": found["score"]}),
    "rouge": ("rouge", lambda found: {name: 100 * found[name] for name in ("rouge1", "rouge2", "rougeL")}),
}
# what a method without a model makes of sources, given the training pairs
BASELINES: dict[str, Callable[[Dataset, Sequence[str]], list[str]]] = {
    "nearest neighbour": baselines.nearest_neighbour,
    "copy of the source": lambda train, sources: list(sources),
}
# task -> what it is measured by unless the configuration says otherwise
TASK_METRICS = {"translation": ["bleu", "chrf"], "summarization": ["rouge"]}
_COUNTS = ("num_beams", "max_new_tokens", "num_return_sequences", "num_beam_groups")  # of `generation`


# ---- configuration --------------------------------------------------------------------------------------------------


@dataclass
class Seq2SeqArguments(OptimizerArguments, Seq2SeqTrainingArguments):
    """Fields of `Seq2SeqTrainingArguments`, and the optimizer by name: from nothing, Muon learns in fewer steps."""


@dataclass
class Seq2SeqModel(ModelSection):
    """
    Attributes:
        new: instead of `path`, a model from nothing: `model_type` and fields of its configuration class.
    """

    path: str | None = None
    new: dict | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.path is None) == (self.new is None):
            raise ValueError("model: give either model.path, a checkpoint, or model.new, the fields of a new model")
        if self.new is not None:
            check_model_fields(self.new)
            new_model_config(self.new, None, 1)


@dataclass
class TaskSection:
    """
    Attributes:
        name: "translation" or "summarization".
        metrics: names of `TEXT_METRICS`; default: what the task is commonly measured by.
        baselines: names of `BASELINES`, scored on the same test examples.
    """

    name: str = "translation"
    metrics: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=lambda: ["nearest neighbour"])

    def __post_init__(self):
        if self.name not in TASK_METRICS:
            raise ValueError(f"task.name = {self.name!r} is unknown{suggestion(self.name, TASK_METRICS)}")
        self.metrics = self.metrics or TASK_METRICS[self.name]
        for key, legal in {"metrics": TEXT_METRICS, "baselines": BASELINES}.items():
            for name in getattr(self, key):
                if name not in legal:
                    raise ValueError(f"task.{key} has {name!r}{suggestion(name, legal)}")


@dataclass(kw_only=True)
class Seq2SeqConfig(TuningConfig):
    """A run of `recipes/seq2seq.py`.

    Attributes:
        model: a checkpoint, or a model from nothing.
        data: source and target texts.
        tokenizer: of a model from nothing.
        task: how the model is measured.
        generation: fields of transformers' `GenerationConfig` for the final figures and the saved model;
            while training, the model is evaluated greedily.
    """

    model: Seq2SeqModel
    data: PairsData
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    task: TaskSection = field(default_factory=TaskSection)
    generation: dict = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.model.new is not None and self.peft is not None:
            raise ValueError("peft: an adapter needs a model.path, weights that have learned something")
        check_keys(self.generation, GenerationConfig().to_dict(), "generation")
        for name, value in self.generation.items():
            if name in _COUNTS and value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"generation.{name} = {value!r}: must be a whole number, at least 1")


# ---- training -------------------------------------------------------------------------------------------------------


class Seq2SeqTuner(TuningMixin, OptimizerByName, Seq2SeqTrainer):
    """transformers' `Seq2SeqTrainer`, for decoders as well, with label smoothing inside the model's chunked loss.

    Args:
        metrics: names of `TEXT_METRICS`.

    Attributes:
        references: target texts of what is being evaluated, in order; metrics compare with these, never with
            targets that were cut.
        predictions: texts of the last evaluation.
        scores: its figures, and sentences that say how they were computed.
    """

    references: list[str] = ()
    predictions: list[str] = ()
    scores: tuple[dict[str, float], list[str]] = ({}, [])

    def __init__(self, *args, metrics: list[str], **kwargs):
        super().__init__(*args, compute_metrics=self._compare, **kwargs)
        self.metrics = metrics
        self.label_smoother = None  # it would ask for all logits

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training and self.args.label_smoothing_factor:
            inputs = {**inputs, "label_smoothing": self.args.label_smoothing_factor}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        prompts = inputs.pop("prompts", None)
        if prompts is None:
            settings = copy.deepcopy(self.model.generation_config)
            try:
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
            finally:
                self.model.generation_config = settings  # it gets a max_length there, which nobody asked for
        inputs, prompts = self._prepare_inputs(inputs), self._prepare_inputs(prompts)
        with torch.no_grad():
            loss = self.compute_loss(model, {**inputs, "skip_logits": True}).detach()
        settings = {k: v for k, v in {**self._gen_kwargs, **gen_kwargs}.items() if v is not None}
        output = self.model.generate(**prompts, **settings)[:, prompts["input_ids"].shape[1] :]
        return loss, output.contiguous(), inputs["labels"]

    def _compare(self, evaluated: EvalPrediction) -> dict[str, float]:
        ids = evaluated.predictions
        ids[ids == IGNORED] = self.processing_class.pad_token_id
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        self.predictions = [text.strip() for text in texts[: len(self.references)]]  # several processes repeat some
        self.scores = score_texts(self.metrics, self.predictions, self.references)
        return self.scores[0]


def score_texts(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """Figures of generated texts by some of `TEXT_METRICS`, by name, and sentences that say how they were computed."""
    figures, notes = {}, []
    for name in names:
        metric, read = TEXT_METRICS[name]
        found = METRICS[metric](predictions=list(predictions), references=list(references))
        figures |= {key: float(value) for key, value in read(found).items()}
        if "signature" in found:
            notes.append(f"{name}: sacrebleu, {found['signature']}.")
    return figures, notes


class Seq2Seq(TuningRun):
    """Trains on pairs of texts, generates the targets of the test split, saves and reports."""

    config_class = Seq2SeqConfig
    arguments_class = Seq2SeqArguments
    managed = {
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
    defaults = {
        **TuningRun.defaults,
        "predict_with_generate": True,
        "generation_num_beams": 1,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "train_sampling_strategy": "group_by_length",
    }

    def prepare(self) -> Seq2SeqTuner:
        data = self.config.data
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.data = data.load()
            self.tokenizer = self.open_tokenizer()
            self.model_config = self.open_model_config()
            self.is_decoder = not self.model_config.is_encoder_decoder
            self.auto_class = AutoModelForCausalLM if self.is_decoder else AutoModelForSeq2SeqLM
            self.check_lengths()
            self.encoded = {
                split: encode_pairs(pairs, self.tokenizer, data, self.is_decoder, with_prompts=split != "train")
                for split, pairs in self.data.items()
            }
        trainer = Seq2SeqTuner(
            model=self.make_model(),
            args=self.args,
            train_dataset=self.encoded["train"],
            eval_dataset=self.encoded["validation"],
            data_collator=PairCollator(self.tokenizer),
            processing_class=self.tokenizer,
            metrics=self.config.task.metrics,
        )
        for split, encoded in self.encoded.items():
            self.notes += report_cuts(split, encoded, data)
        trainer.references = self.data["validation"]["target"][:]
        return trainer

    def open_tokenizer(self) -> PreTrainedTokenizerBase:
        model = self.config.model
        if model.path is not None or model.tokenizer is not None:
            return open_tokenizer(model)
        config, train = CONFIG_MAPPING[model.new["model_type"]](), self.data["train"]
        return kept_tokenizer(
            self.run_dir / "tokenizer",
            self.config.tokenizer,
            self.config.to_dict()["data"],
            (text for side in ("source", "target") for text in train[side]),
            stack="encoder-decoder" if config.is_encoder_decoder else "decoder",
            show_progress=not self.args.disable_tqdm,
        )

    def open_model_config(self):
        model, data = self.config.model, self.config.data
        if model.new is None:
            return open_config(model, AutoModelForSeq2SeqLM if is_encoder_decoder(model) else AutoModelForCausalLM)
        config = new_model_config(model.new, self.tokenizer, data.max_source_length + data.max_target_length)
        check_vocabulary(self.tokenizer, config.get_text_config(decoder=True).vocab_size)
        return config

    def check_lengths(self) -> None:
        """Raise ValueError where texts are longer than the model reads, or a decoder's prompt has no room."""
        data = self.config.data
        lengths = {"source": data.max_source_length, "target": data.max_target_length}
        if self.is_decoder:
            lengths = {"source": sum(lengths.values())}
            if self.tokenizer.eos_token_id is None:
                raise ValueError("model: the tokenizer has no end token, so a decoder would never learn where to stop")
            fixed = len(self.tokenizer(data.separator)["input_ids"])
            if data.max_source_length <= fixed:
                raise ValueError(
                    f"data.max_source_length = {data.max_source_length}: data.separator and special tokens take "
                    f"{fixed}, which leaves no room for a source"
                )
        limit = text_limit(self.model_config, self.tokenizer)
        for side, length in lengths.items():
            if limit is not None and length > limit:
                raise ValueError(f"data.max_{side}_length: {length} tokens are more than the model's {limit}")

    def make_model(self) -> PreTrainedModel:
        if self.config.model.new is None:
            model = self.open_model(self.auto_class, self.tokenizer, len(self.data["train"]))
        else:
            set_seed(self.config.seed)
            model = self.auto_class.from_config(self.model_config, dtype=getattr(torch, self.config.model.dtype))
        generation = {"max_new_tokens": self.config.data.max_target_length, **self.config.generation}
        model.generation_config.update(max_length=None, pad_token_id=self.tokenizer.pad_token_id, **generation)
        return model

    def evaluate(self) -> Results:
        trainer, test, config = self.trainer, self.data["test"], self.config
        trainer.references = test["target"][:]
        beams = config.generation.get("num_beams", 1)
        loss = trainer.predict(self.encoded["test"], metric_key_prefix="test", num_beams=beams).metrics["test_loss"]
        figures, notes = trainer.scores
        guesses = {name: BASELINES[name](self.data["train"], test["source"][:]) for name in config.task.baselines}
        rows = [
            {"source": source, "prediction": prediction, "reference": reference}
            for source, prediction, reference in zip(
                test["source"], trainer.predictions, trainer.references, strict=True
            )
        ]
        self.write_records("predictions.jsonl", rows)
        task = "text-generation" if self.is_decoder else config.task.name
        example = config.data.prefix + rows[0]["source"] + (config.data.separator if self.is_decoder else "")
        decoding = f"a beam of {beams}" if beams > 1 else "greedy decoding"
        return self.results(
            task=task,
            metrics={"loss": loss, **figures, "perplexity": math.exp(loss)},
            usage=usage(config, task, self.auto_class, json.dumps(example)),
            baselines={
                name: score_texts(config.task.metrics, g, trainer.references)[0] for name, g in guesses.items()
            },
            notes=[f"Scored against the test split as it stands, with {decoding}.", *notes],
            files={"predictions.jsonl": "source, prediction and reference of every test example"},
            samples="\n\n".join(map(_sample_text, rows[:4])),
        )


def _sample_text(row: dict[str, str]) -> str:
    """Source, prediction and reference of an example, as Markdown."""
    shown = {"source": "source", "prediction": "model", "reference": "reference"}
    return "\n>\n".join(f"> **{name}** {' '.join(row[key].split())}" for key, name in shown.items())
