"""Translation and summarisation: a target text from a source text, by an encoder-decoder or a decoder."""

import copy
import dataclasses
import json
import math
import signal
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    set_seed,
)

from hf_llm.data import check_vocabulary, train_tokenizer
from hf_llm.data.tasks import SPLITS, load_task
from hf_llm.training.optimizers import OptimizerByName
from hf_llm.training.pretraining import new_model_config
from hf_llm.training.runs import run_directory, set_cpu_threads

from .config import training_arguments
from .finetuning import describe_dataset
from .generated import BASELINES, TextMetrics, samples_text
from .labels import check_texts
from .models import is_encoder_decoder, open_config, open_tokenizer, text_limit
from .pairs import IGNORED, PairCollator, PairFormat, encode_pairs, report_cuts, take
from .report import Results
from .running import TuningMixin, prepare_model, run
from .seq2seq_config import Seq2SeqArguments, Seq2SeqConfig


class Seq2SeqTuner(TuningMixin, OptimizerByName, Seq2SeqTrainer):
    """transformers' `Seq2SeqTrainer`, for decoders as well, with label smoothing inside the model's chunked loss.

    Attributes:
        references: target texts of what is being evaluated, in order; metrics compare with these, never with
            targets that were cut.
        predictions: texts of the last evaluation.
    """

    references: list[str] = ()
    predictions: list[str] = ()

    def __init__(self, *args, metrics: TextMetrics, **kwargs):
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
        return self.metrics.compute(self.predictions, self.references)


def train_seq2seq(config: Seq2SeqConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Train, evaluate, save and report; go on from a checkpoint where there is one.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: anything wrong with the configuration, the data or the checkpoint, before training starts.
    """
    set_cpu_threads(config.cpu_threads)
    args = training_arguments(
        config,
        Seq2SeqArguments,
        predict_with_generate=True,
        generation_num_beams=1,
        remove_unused_columns=False,
        label_names=["labels"],
        train_sampling_strategy="group_by_length",
    )
    with run_directory(args):
        return _Run(config, args).run(card_template)


class _Run:
    """The parts of one run, made in order: texts, tokenizer, token ids, model, trainer."""

    def __init__(self, config: Seq2SeqConfig, args: Seq2SeqArguments):
        self.config = config
        self.args = args

    def run(self, card_template: Path | None) -> signal.Signals | None:
        data = self.config.data
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.texts = {split: self.load(split, getattr(data, f"max_{split}_samples")) for split in SPLITS}
            self.tokenizer = self.open_tokenizer()
            self.model_config = self.open_model_config()
            self.form = self.pair_format()
            self.notes, encoded = [], {}
            for split, texts in self.texts.items():
                encoded[split], cut = encode_pairs(texts, self.tokenizer, self.form, with_prompts=split != "train")
                self.notes += report_cuts(split, cut, len(texts), self.form)
        self.encoded = encoded
        self.trainer = self.make_trainer()
        facts = {"fingerprint": [texts._fingerprint for texts in self.texts.values()]}
        return run(self.trainer, self.config, self.evaluate, card_template, facts)

    def load(self, split: str, limit: int | None) -> Dataset:
        """Columns `source` and `target` of a split."""
        data = self.config.data
        dataset = load_task(data.dataset, split)
        for side in ("source", "target"):
            if getattr(data, side) not in dataset.column_names:
                raise ValueError(
                    f"data.{side} = {getattr(data, side)!r} is no column of the data; there are {dataset.column_names}"
                )
        dataset = dataset.select_columns([data.source, data.target])
        dataset = dataset.rename_columns({data.source: "source", data.target: "target"})
        for side in ("source", "target"):
            check_texts(dataset, side, split)
        return take(dataset, limit, split)

    # ---- tokenizer and model ----------------------------------------------------------------------------------------

    def open_tokenizer(self) -> PreTrainedTokenizerBase:
        model = self.config.model
        if model.path is not None or model.tokenizer is not None:
            return open_tokenizer(model if model.path else dataclasses.replace(model, path=model.tokenizer, new=None))
        folder = Path(self.config.output_dir, "tokenizer")
        made_with = {**dataclasses.asdict(self.config.tokenizer), "data": dataclasses.asdict(self.config.data)}
        note = folder / "made_with.json"
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == made_with:
            return AutoTokenizer.from_pretrained(folder)
        section, train = self.config.tokenizer, self.texts["train"]
        tokenizer = train_tokenizer(
            (text for side in ("source", "target") for text in train[side]),
            section.algorithm,
            section.vocab_size,
            stack=_stack(CONFIG_MAPPING[model.new["model_type"]]()),
            show_progress=not self.args.disable_tqdm,
        )
        tokenizer.save_pretrained(folder)
        note.write_text(json.dumps(made_with), encoding="utf-8")
        return tokenizer

    def open_model_config(self):
        model, data = self.config.model, self.config.data
        if model.new is None:
            stack = "encoder-decoder" if is_encoder_decoder(model) else "decoder"
            return open_config(model, _AUTO_CLASSES[stack])
        config = new_model_config(model.new, self.tokenizer, data.max_source_length + data.max_target_length)
        check_vocabulary(self.tokenizer, config.get_text_config(decoder=True).vocab_size)
        return config

    def pair_format(self) -> PairFormat:
        data, stack = self.config.data, _stack(self.model_config)
        if stack == "decoder":
            if self.tokenizer.eos_token_id is None:
                raise ValueError("model: the tokenizer has no end token, so a decoder would never learn where to stop")
            fixed = len(self.tokenizer(data.separator)["input_ids"])
            if data.max_source_length <= fixed:
                raise ValueError(
                    f"data.max_source_length = {data.max_source_length}: data.separator and special tokens take "
                    f"{fixed}, which leaves no room for a source"
                )
        return PairFormat(
            stack=stack,
            prefix=data.prefix,
            separator=data.separator,
            max_source_length=data.max_source_length,
            max_target_length=data.max_target_length,
        )

    def make_model(self) -> PreTrainedModel:
        auto_class = _AUTO_CLASSES[self.form.stack]
        if self.config.model.new is None:
            model = prepare_model(
                self.config, auto_class, self.tokenizer, self.args, num_samples=len(self.encoded["train"])
            )
        else:
            set_seed(self.config.seed)
            model = auto_class.from_config(self.model_config, dtype=getattr(torch, self.config.model.dtype))
        data = self.config.data
        lengths = {"source": data.max_source_length, "target": data.max_target_length}
        if self.form.stack == "decoder":
            lengths = {"source": sum(lengths.values())}
        limit = text_limit(model.config, self.tokenizer)
        for side, length in lengths.items():
            if limit is not None and length > limit:
                raise ValueError(f"data.max_{side}_length: {length} tokens are more than the model's {limit}")
        generation = {"max_new_tokens": data.max_target_length, **self.config.generation}
        model.generation_config.update(max_length=None, pad_token_id=self.tokenizer.pad_token_id, **generation)
        return model

    def make_trainer(self) -> Seq2SeqTuner:
        model = self.make_model()
        trainer = Seq2SeqTuner(
            model=model,
            args=self.args,
            train_dataset=self.encoded["train"],
            eval_dataset=self.encoded["validation"],
            data_collator=PairCollator(self.tokenizer),
            processing_class=self.tokenizer,
            metrics=TextMetrics(self.config.task.metrics),
        )
        trainer.references = self.texts["validation"]["target"][:]
        return trainer

    # ---- the final figures ------------------------------------------------------------------------------------------

    def evaluate(self) -> Results:
        trainer, test, config = self.trainer, self.texts["test"], self.config
        trainer.references = test["target"][:]
        beams = config.generation.get("num_beams", 1)
        found = trainer.predict(self.encoded["test"], metric_key_prefix="test", num_beams=beams).metrics
        names = trainer.metrics.names
        metrics = {"loss": found["test_loss"], **{name: found[f"test_{name}"] for name in names}}
        metrics["perplexity"] = math.exp(metrics["loss"])
        baselines = {}
        for name in config.task.baselines:
            guesses = BASELINES[name](self.texts["train"], test["source"][:])
            baselines[name] = trainer.metrics.compute(guesses, trainer.references)
        rows = [
            {"source": source, "prediction": prediction, "reference": reference}
            for source, prediction, reference in zip(
                test["source"], trainer.predictions, trainer.references, strict=True
            )
        ]
        if self.args.should_save:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            Path(config.output_dir, "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
        decoding = f"a beam of {beams}" if beams > 1 else "greedy decoding"
        return Results(
            task="text-generation" if self.form.stack == "decoder" else config.task.name,
            dataset=describe_dataset(config.data.dataset),
            metrics=metrics,
            rows={split: len(texts) for split, texts in self.texts.items()},
            usage=_USAGE[self.form.stack].format(
                path=Path(config.output_dir).name, source=json.dumps(rows[0]["source"])
            ),
            baselines=baselines,
            notes=[
                f"Scored against the test split as it stands, with {decoding}.",
                *trainer.metrics.notes,
                *self.notes,
            ],
            files={"predictions.jsonl": "source, prediction and reference of every test example"},
            samples=samples_text(rows[:4]),
        )


_AUTO_CLASSES = {"encoder-decoder": AutoModelForSeq2SeqLM, "decoder": AutoModelForCausalLM}
_USAGE = {
    "encoder-decoder": """import hf_llm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")
source = tokenizer({source}, return_tensors="pt")
print(tokenizer.decode(model.generate(**source)[0], skip_special_tokens=True))""",
    "decoder": """import hf_llm
from transformers import pipeline

generate = pipeline("text-generation", "{path}")
print(generate({source} + "\\n", return_full_text=False))""",
}


def _stack(config) -> str:
    return "encoder-decoder" if config.is_encoder_decoder else "decoder"
