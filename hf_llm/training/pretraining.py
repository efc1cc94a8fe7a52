"""One pretraining run, from a `RunConfig` to a model directory with its report."""

import dataclasses
import itertools
import json
import logging
import math
import signal
from pathlib import Path

import datasets
import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, set_seed

from hf_llm.data import (
    EvaluationSamples,
    StreamingSamples,
    TrainingSamples,
    check_corpus_size,
    check_token_ids,
    check_vocabulary,
    collate,
    load_corpus,
    make_objective,
    pack_corpus,
    train_tokenizer,
)

from . import runs
from .arguments import PretrainingArguments
from .callbacks import ReportAtSave
from .config import RunConfig
from .evaluation import IGNORED, preserved_rng
from .from_decoder import DecoderStart
from .report import RunFacts, final_metrics, summary_text, write_report
from .resuming import check_architecture, find_checkpoint
from .runs import run_directory, set_cpu_threads
from .samples import draw_samples
from .settings import opening
from .stacks import stack_of
from .stream import StreamByIndex
from .trainer import DATA_STATE, PretrainTrainer
from .word_vectors import init_embeddings_from_word_vectors


logger = logging.getLogger(__name__)

_TABLE_POSITIONS = ("learned", "sinusoidal")  # kinds of positions that end where their table ends
_TOKENIZER_DOCUMENTS = 100_000  # of a stream, to train a tokenizer on


def pretrain(config: RunConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Train, evaluate, save and report; go on from a checkpoint where there is one.

    Args:
        config: the run.
        card_template: Jinja template of the model card; None writes no card.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: anything wrong with the configuration, the data or the checkpoint, before training starts.
        CheckpointError: a checkpoint could not be written.
        TrainingDiverged: the loss is not finite any more.
    """
    set_cpu_threads(config.cpu_threads)
    args = training_arguments(config, config.training.get("max_steps") or 1)
    with run_directory(args):
        return _Run(config, args, card_template).run()


def training_arguments(config: RunConfig, max_steps: int) -> PretrainingArguments:
    """`PretrainingArguments` of a run of `max_steps` steps; an evaluation also happens at every save."""
    settings = {k: v for k, v in config.training.items() if k != "num_train_epochs"}
    if not {"max_steps", "num_train_epochs"} & set(config.training):
        raise ValueError("training.max_steps or training.num_train_epochs is missing")
    if config.data.streaming and "max_steps" not in config.training:
        raise ValueError("data.streaming = True needs training.max_steps: a stream has no epochs")
    return PretrainingArguments(**{**settings, "max_steps": max_steps}, output_dir=config.output_dir, seed=config.seed)


class _Run:
    """The parts of one run, made in order: tokenizer, data, model, trainer."""

    def __init__(self, config: RunConfig, args: PretrainingArguments, card_template: Path | None):
        self.config = config
        self.args = args
        self.card_template = card_template
        self.run_dir = Path(config.output_dir)
        self.stack = stack_of(CONFIG_MAPPING[config.model["model_type"]])
        supervised = config.objective["name"] == "supervised"
        self.columns = ("source", "target") if supervised else ("text",)

    def run(self) -> signal.Signals | None:
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.tokenizer, self.model_config = self.open_tokenizer_and_config()
            check_vocabulary(self.tokenizer, self.model_config.get_text_config(decoder=True).vocab_size)
            self.objective = self.make_objective()
            data = self.config.data
            check_positions(self.model_config, self.objective.capacity(data.row_length, data.target_row_length))
            train, evaluation = self.load_data()
        facts = {
            **self.config.to_dict(),
            "global_batch_size": self.args.global_batch_size,
            "fingerprint": self.corpus_report.get("fingerprint"),
        }
        checkpoint = find_checkpoint(self.run_dir, self.config.resume)
        if checkpoint is not None:
            check_architecture(checkpoint, _saved_config(checkpoint), self.model_config)
            if isinstance(train, StreamByIndex):
                train.load_state_dict(json.loads((checkpoint / DATA_STATE).read_text(encoding="utf-8")))

        trainer = self.make_trainer(train, evaluation, facts)
        trainer.add_callback(ReportAtSave(lambda: self.write_report(trainer)))
        return runs.train(trainer, checkpoint) or self.finish(trainer)

    def say(self, text: str) -> None:
        if self.args.should_save:
            print(text, flush=True)

    # ---- tokenizer and data ----------------------------------------------------------------------------------------

    def open_tokenizer_and_config(self) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
        if self.config.from_decoder is None:
            tokenizer = self.open_tokenizer()
            return tokenizer, build_model_config(self.config, tokenizer)
        self.start = DecoderStart(self.config.from_decoder, self.stack.name)
        fields = {k: v for k, v in self.config.model.items() if k != "model_type"}
        return self.start.tokenizer, self.start.model_config(fields)

    def open_tokenizer(self) -> PreTrainedTokenizerBase:
        section = self.config.tokenizer
        if section.path is not None:
            with opening("tokenizer.path", section.path):
                return AutoTokenizer.from_pretrained(section.path)
        folder = self.run_dir / "tokenizer"
        made_with = {**dataclasses.asdict(section), "data": dataclasses.asdict(self.config.data)["corpus"]}
        note = folder / "made_with.json"
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == made_with:
            return AutoTokenizer.from_pretrained(folder)
        documents = itertools.islice(self.documents("train"), _TOKENIZER_DOCUMENTS)
        tokenizer = train_tokenizer(
            (document[column] for document in documents for column in self.columns),
            section.algorithm,
            section.vocab_size,
            stack=self.stack.name,
            show_progress=not self.args.disable_tqdm,
        )
        tokenizer.save_pretrained(folder)
        note.write_text(json.dumps(made_with), encoding="utf-8")
        return tokenizer

    def documents(self, split: str) -> datasets.Dataset | datasets.IterableDataset:
        data = self.config.data
        return load_corpus(
            data.corpus,
            split,
            held_out_fraction=data.held_out_fraction,
            streaming=data.streaming,
            columns=None if self.columns == ("text",) else self.columns,  # text may have another name at its source
            seed=self.config.seed,
        )

    def make_objective(self):
        options = {k: v for k, v in self.config.objective.items() if k != "name"}
        if self.model_config.is_encoder_decoder:
            options = {"decoder_start_token_id": self.model_config.decoder_start_token_id, **options}
        return make_objective(self.config.objective["name"], self.tokenizer, stack=self.stack.name, **options)

    def load_data(self) -> tuple[Dataset, Dataset]:
        """Training samples, by index, and evaluation samples."""
        data, seed = self.config.data, self.config.seed
        lengths = {"row_length": data.row_length, "target_row_length": data.target_row_length}
        packing = {**lengths, "num_proc": data.num_proc, "cache_dir": data.cache_dir, "seed": seed}
        vocab_size = self.model_config.get_text_config(decoder=True).vocab_size

        if data.streaming:
            self.corpus_report = {}
            stream = StreamingSamples(self.documents("train"), self.tokenizer, self.objective, seed=seed, **lengths)
            train = StreamByIndex(stream, self.args.max_steps * self.args.global_batch_size)
            held_out = datasets.Dataset.from_list(list(self.documents("validation").take(data.validation_rows)))
        else:
            rows = pack_corpus(self.documents("train"), self.tokenizer, self.objective, **packing)
            check_corpus_size(rows, self.args.global_batch_size)
            check_token_ids(rows, vocab_size)
            self.corpus_report = rows.report
            self.settle_epochs(len(rows))
            length = self.args.max_steps * self.args.global_batch_size
            train = TrainingSamples(rows, self.objective, seed=seed, length=length)
            held_out = self.documents("validation")

        validation = pack_corpus(held_out, self.tokenizer, self.objective, **packing)
        check_token_ids(validation, vocab_size)
        self.validation_report = validation.report
        return train, self.validation_rows(EvaluationSamples(validation, self.objective, seed=seed))

    def settle_epochs(self, rows: int) -> None:
        epochs = self.config.training.get("num_train_epochs")
        if epochs is not None and "max_steps" not in self.config.training:
            steps = math.ceil(epochs * rows / self.args.global_batch_size)
            self.args = training_arguments(self.config, steps)

    def validation_rows(self, evaluation: Dataset) -> Dataset:
        """`validation_rows` rows, evenly spread, for neighbours come from the same documents.

        Raises:
            ValueError: none of them has a target.
        """
        count = min(len(evaluation), self.config.data.validation_rows)
        chosen = Subset(evaluation, [i * len(evaluation) // count for i in range(count)])
        if not any((row["labels"] != IGNORED).any() for row in chosen):
            raise ValueError(
                f"data.validation_rows = {self.config.data.validation_rows} takes {max(count, 0)} of the validation "
                f"split's {len(evaluation)} rows, and there are no targets in them: take more, or give it more data"
            )
        return chosen

    # ---- model and trainer -----------------------------------------------------------------------------------------

    def make_model(self):
        set_seed(self.config.seed)
        if self.config.from_decoder is not None:
            return self.start.make_model(self.model_config)
        source = self.config.init_from
        if source is None:
            model = self.stack.auto_class.from_config(self.model_config)
            if self.config.word_vectors is not None:
                found = init_embeddings_from_word_vectors(model, self.tokenizer, self.config.word_vectors)
                self.say(f"{found:,} of {len(self.tokenizer):,} tokens start from {self.config.word_vectors}.")
            return model
        if self.config.word_vectors is not None:
            raise ValueError(f"word_vectors = {self.config.word_vectors!r} has no effect with init_from = {source!r}")
        with opening("init_from", source):
            check_architecture(source, AutoConfig.from_pretrained(source).to_dict(), self.model_config)
            return self.stack.auto_class.from_pretrained(source, dtype=torch.float32)

    def make_trainer(self, train: Dataset, evaluation: Dataset, facts: dict) -> PretrainTrainer:
        return PretrainTrainer(
            model=self.make_model(),
            args=self.args,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=self.tokenizer,
            run_facts=facts,
            row_length=self.config.data.row_length,
        )

    # ---- report ----------------------------------------------------------------------------------------------------

    def finish(self, trainer: PretrainTrainer) -> None:
        history = trainer.state.log_history
        if not any("eval_loss" in e and e["step"] == trainer.state.global_step for e in history):
            trainer.evaluate()
        trainer.save_final_model()
        if self.args.should_save:
            self.write_report(trainer)
        self.say(summary_text(self.run_dir, final_metrics(trainer.state.log_history)))
        if self.args.push_to_hub:
            trainer.push_to_hub()

    def write_report(self, trainer: PretrainTrainer) -> None:
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        samples = []
        if not sharded:  # a single process cannot run a sharded model
            with preserved_rng():
                section = self.config.samples
                samples = draw_samples(trainer.model, self.tokenizer, **dataclasses.asdict(section))
        write_report(self.run_dir, self.facts(trainer), trainer.state.log_history, samples, self.card_template)

    def facts(self, trainer: PretrainTrainer) -> RunFacts:
        embeddings = {id(m.weight): m.weight.numel() for m in trainer.model.modules() if isinstance(m, nn.Embedding)}
        return RunFacts(
            config=self.config.to_dict(),
            stack=self.stack,
            model_config=self.model_config.to_dict(),
            parameters=sum(p.numel() for p in trainer.model.parameters()),
            embedding_parameters=sum(embeddings.values()),
            corpus=self.corpus_report,
            validation=self.validation_report,
            global_batch_size=self.args.global_batch_size,
            flops_per_token=trainer.flops_per_token,
            device=_device_text(self.args),
        )


def build_model_config(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The model's configuration: the `model` section, with what tokenizer and data decide filled in."""
    length = max(config.data.row_length, config.data.target_row_length or 0)
    return new_model_config(config.model, tokenizer, length)


def new_model_config(model: dict, tokenizer: PreTrainedTokenizerBase, length: int) -> PreTrainedConfig:
    """A configuration from `model_type` and fields of its class.

    Args:
        tokenizer: decides vocabulary and special tokens where `model` does not.
        length: of the longest row, which `max_position_embeddings` defaults to.
    """
    fields = {k: v for k, v in model.items() if k != "model_type"}
    config_class = CONFIG_MAPPING[model["model_type"]]
    legal = {f.name for f in dataclasses.fields(config_class)}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"vocab_size": math.ceil(len(tokenizer) / 64) * 64, "max_position_embeddings": length}
    try:
        if "encoder" in config_class.sub_configs:
            parts = {part: {**sizes, **ids, **fields.pop(part, {})} for part in ("encoder", "decoder")}
            start = {"decoder_start_token_id": tokenizer.pad_token_id}
            return config_class(**{**start, **ids, **fields}, **parts)
        known = {k: v for k, v in {**sizes, **ids}.items() if k in legal}
        return config_class(**{**known, **fields})
    except ValueError as error:
        raise ValueError(f"model: {error}") from error


def check_positions(config: PreTrainedConfig, lengths: tuple[int, ...]) -> None:
    """Check that positions that end with a table cover a row.

    Args:
        lengths: tokens per row, (input,) or (input, target).

    Raises:
        ValueError: a row is longer than `max_position_embeddings` of a part with learned or sinusoidal positions.
    """
    parts = {"": config} if len(lengths) == 1 else {"encoder.": config.encoder, "decoder.": config.decoder}
    fields = ("row_length", "target_row_length")
    for (name, part), field, length in zip(parts.items(), fields, lengths, strict=False):
        if part.position_embedding in _TABLE_POSITIONS and length > part.max_position_embeddings:
            raise ValueError(
                f"data.{field} = {length} is longer than model.{name}max_position_embeddings = "
                f"{part.max_position_embeddings} allows with position_embedding = {part.position_embedding!r}"
            )


def _saved_config(checkpoint: Path) -> dict:
    return AutoConfig.from_pretrained(checkpoint).to_dict()


def _device_text(args: PretrainingArguments) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    threads = args.world_size * torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"
