"""Pretraining an encoder, a decoder or an encoder-decoder on text: data, model and trainer of the run."""

import dataclasses
import itertools
import json
import logging
import math
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import torch
from torch.utils.data import Dataset, Subset
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

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

from ..surgery import build_from_decoder, encoder_config, encoder_decoder_config, load_decoder
from ..surgery.tokens import add_tokens, prepare_tokenizer, token_fields
from .arguments import MANAGED_IN_PRETRAINING, PretrainingArguments
from .config import PretrainingConfig, TokenizerSection, new_model_config
from .evaluation import IGNORED, preserved_rng
from .opening import TABLE_POSITIONS, open_config, open_model, open_tokenizer
from .report import Results, last_logs
from .resuming import check_architecture
from .run import Run
from .samples import draw_samples, fenced
from .settings import describe, opening
from .stacks import STACKS, stack_of
from .stream import StreamByIndex
from .trainer import DATA_STATE, PretrainTrainer
from .word_vectors import init_embeddings_from_word_vectors


logger = logging.getLogger(__name__)

_TOKENIZER_DOCUMENTS = 100_000  # of a stream, to train a tokenizer on
_CORPUS_FIGURES = ("documents", "tokens", "bytes", "rows", "bytes_per_token", "fill")
_USAGE = """from transformers import {auto_class}, AutoTokenizer

# `import hf_llm` first makes trust_remote_code unnecessary
model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
_LIMITS = (
    "A small model trained briefly, for showing and testing the recipe: it has learned the form of its corpus, not "
    "facts. It has not been aligned, filtered or evaluated for bias, and its text should not be relied on."
)


def pretrain(config: PretrainingConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Train, evaluate, save and report (see `Run.run`); go on from a checkpoint where there is one."""
    return Pretraining(config, card_template).run()


class Pretraining(Run):
    """A run of `recipes/pretrain.py`."""

    config_class = PretrainingConfig
    arguments_class = PretrainingArguments
    managed = MANAGED_IN_PRETRAINING
    reports_at_save = True

    @classmethod
    def describe(cls) -> Iterator[str]:
        yield from super().describe()
        model_classes = [CONFIG_MAPPING[name] for name in STACKS]
        yield from dict.fromkeys(line for model_class in model_classes for line in describe(model_class, "model"))

    def make_arguments(self, max_steps: int = 1) -> PretrainingArguments:
        """The arguments of a run whose configuration gives its steps, or epochs that are `max_steps` steps."""
        given = self.config.training
        if not {"max_steps", "num_train_epochs"} & set(given):
            raise ValueError("training.max_steps or training.num_train_epochs is missing")
        if self.config.data.streaming and "max_steps" not in given:
            raise ValueError("data.streaming = True needs training.max_steps: a stream has no epochs")
        return self.arguments(max_steps=max_steps)

    def prepare(self) -> PretrainTrainer:
        config = self.config
        if config.checkpoint is None:
            self.stack = stack_of(CONFIG_MAPPING[config.model["model_type"]])
        else:
            self.stack = stack_of(open_config(config.checkpoint))
        self.columns = ("source", "target") if config.objective["name"] == "supervised" else ("text",)
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.tokenizer, self.model_config = self.open_tokenizer_and_config()
            self.vocab_size = self.model_config.get_text_config(decoder=True).vocab_size
            check_vocabulary(self.tokenizer, self.vocab_size)
            self.objective = self.make_objective()
            lengths = self.objective.capacity(config.data.row_length, config.data.target_row_length)
            check_positions(self.model_config, lengths)
            train, evaluation = self.load_data()
        if self.checkpoint is not None:
            saved = AutoConfig.from_pretrained(self.checkpoint).to_dict()
            check_architecture(self.checkpoint, saved, self.model_config)
            if isinstance(train, StreamByIndex):
                train.load_state_dict(json.loads((self.checkpoint / DATA_STATE).read_text(encoding="utf-8")))
        return PretrainTrainer(
            model=self.make_model(),
            args=self.args,
            data_collator=collate,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=self.tokenizer,
            row_length=config.data.row_length,
        )

    def facts(self) -> dict:
        return {"fingerprint": self.corpus_report.get("fingerprint")}

    # ---- tokenizer and data -----------------------------------------------------------------------------------------

    def open_tokenizer_and_config(self) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
        section = self.config.from_decoder
        if self.config.checkpoint is not None:
            return self.open_checkpoint()
        if section is None:
            tokenizer = self.open_tokenizer()
            return tokenizer, build_model_config(self.config, tokenizer)
        with opening("from_decoder.path", section.path):
            self.decoder = load_decoder(section.path)
            tokenizer = AutoTokenizer.from_pretrained(section.path)
        self.known_tokens = prepare_tokenizer(tokenizer, self.stack.name, section.extra_special_tokens)
        fields = {**token_fields(tokenizer, self.decoder.config.vocab_size), **self.config.model}
        del fields["model_type"]
        if self.stack.name == "encoder":
            return tokenizer, encoder_config(self.decoder.config, **fields)
        return tokenizer, encoder_decoder_config(self.decoder.config, section.tied, **fields)

    def open_checkpoint(self) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
        """Tokenizer and configuration of `model.path`; the latter with `model.fields`, room for the tokens that
        `tokenizer.add` names, and positions for rows that are longer than its own."""
        given = self.config.tokenizer
        section = dataclasses.replace(self.config.checkpoint, tokenizer=given.path, add_tokens=given.add)
        tokenizer, config = open_tokenizer(section), open_config(section)
        length, fields = self.config.longest_row, dict(section.fields)
        for name in config.sub_configs or [None]:
            part = config if name is None else getattr(config, name)
            if part.max_position_embeddings < length and part.position_embedding not in TABLE_POSITIONS:
                logger.warning("max_position_embeddings is %d from here on, as long as rows are", length)
                longer = {"max_position_embeddings": length}
                fields |= longer if name is None else {name: {**fields.get(name, {}), **longer}}
        self.source = dataclasses.replace(section, fields=fields)
        return tokenizer, open_config(self.source, tokenizer=tokenizer)

    def open_tokenizer(self) -> PreTrainedTokenizerBase:
        section = self.config.tokenizer
        if section.path is not None:
            with opening("tokenizer.path", section.path):
                tokenizer = AutoTokenizer.from_pretrained(section.path)
            add_tokens(tokenizer, section.add)
            return tokenizer
        documents = itertools.islice(self.documents("train"), _TOKENIZER_DOCUMENTS)
        return kept_tokenizer(
            self.run_dir / "tokenizer",
            section,
            self.config.to_dict()["data"]["corpus"],
            (document[column] for document in documents for column in self.columns),
            stack=self.stack.name,
            extra_special_tokens=section.add,
            show_progress=not self.args.disable_tqdm,
        )

    def documents(self, split: str, report: list[dict] | None = None) -> datasets.Dataset | datasets.IterableDataset:
        data = self.config.data
        spec, options = data.source(split)
        return load_corpus(
            spec,
            **options,
            streaming=data.streaming,
            columns=None if self.columns == ("text",) else self.columns,  # text may have another name at its source
            seed=self.config.seed,
            report=report,
        )

    def make_objective(self):
        options = dict(self.config.objective)
        if self.model_config.is_encoder_decoder:
            options = {"decoder_start_token_id": self.model_config.decoder_start_token_id, **options}
        return make_objective(options.pop("name"), self.tokenizer, stack=self.stack.name, **options)

    def load_data(self) -> tuple[Dataset, Dataset]:
        """Training samples, by index, and evaluation samples."""
        data, seed, self.sources = self.config.data, self.config.seed, []
        lengths = {"row_length": data.row_length, "target_row_length": data.target_row_length}
        packing = {**lengths, "num_proc": data.num_proc, "cache_dir": data.cache_dir, "seed": seed}
        if data.streaming:
            self.corpus_report = {}
            stream = StreamingSamples(
                self.documents("train", self.sources), self.tokenizer, self.objective, seed=seed, **lengths
            )
            train = StreamByIndex(stream, self.args.max_steps * self.args.global_batch_size)
            held_out = datasets.Dataset.from_list(list(self.documents("validation").take(data.validation_rows)))
        else:
            rows = pack_corpus(self.documents("train", self.sources), self.tokenizer, self.objective, **packing)
            check_corpus_size(rows, self.args.global_batch_size)
            check_token_ids(rows, self.vocab_size)
            self.corpus_report = rows.report
            if "max_steps" not in self.config.training:
                epochs = self.config.training["num_train_epochs"]
                self.args = self.make_arguments(math.ceil(epochs * len(rows) / self.args.global_batch_size))
            length = self.args.max_steps * self.args.global_batch_size
            train = TrainingSamples(rows, self.objective, seed=seed, length=length)
            held_out = self.documents("validation")
        validation = pack_corpus(held_out, self.tokenizer, self.objective, **packing)
        check_token_ids(validation, self.vocab_size)
        self.validation_report = validation.report
        return train, self.validation_rows(EvaluationSamples(validation, self.objective, seed=seed))

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

    # ---- model ------------------------------------------------------------------------------------------------------

    def make_model(self) -> PreTrainedModel:
        """The model: new, in float32, or with the weights of `model.path` or `from_decoder`."""
        set_seed(self.config.seed)
        auto_class, section = self.stack.auto_class, self.config.from_decoder
        if section is not None:
            decoder, self.decoder = self.decoder, None  # let go of when its weights are taken over
            model_class = auto_class._model_mapping[type(self.model_config)]
            return build_from_decoder(
                model_class, self.model_config, decoder, section.cross_attention, self.known_tokens
            ).float()
        if self.config.checkpoint is not None:
            return open_model(self.source, auto_class, self.tokenizer)
        model = auto_class.from_config(self.model_config)
        if self.config.word_vectors is not None:
            found = init_embeddings_from_word_vectors(model, self.tokenizer, self.config.word_vectors)
            self.say(f"{found:,} of {len(self.tokenizer):,} tokens start from {self.config.word_vectors}.")
        return model

    # ---- report -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        state = self.trainer.state
        if not any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history):
            self.trainer.evaluate()
        super().finish()

    def evaluate(self) -> Results:
        """The figures of the last evaluation, and samples, which are written to `samples.md`."""
        history, data = self.trainer.state.log_history, self.config.data
        corpus = data.corpus if isinstance(data.corpus, str) else json.dumps(data.corpus)
        held_out = f"{data.held_out_fraction:.0%} of the documents are held out"
        if data.validation is not None:
            held_out = "The validation set is one of its own"
        evaluations = [e for e in history if "eval_loss" in e]
        names = {name: f"eval_{name}" for name in ("loss", "perplexity", "bits_per_byte")}
        last = last_logs(history)
        return Results(
            task=self.stack.pipeline_tag,
            dataset=f"{corpus}, held-out split" if data.validation is None else json.dumps(data.validation),
            metrics={key: last[key] for key in names.values() if key in last},
            usage=_USAGE.format(auto_class=self.stack.auto_class.__name__, name=self.run_dir.name),
            about=self.about(corpus),
            tags=["pretraining", self.stack.name],
            limits=_LIMITS,
            notes=[
                f"The loss is in nats per {self.stack.loss_name}. {held_out}; at most {data.validation_rows:,} rows "
                f"of {data.row_length:,} tokens of them are evaluated."
            ],
            tables={
                "Validation while training": [
                    {"step": e["step"], **{name: e[key] for name, key in names.items() if key in e}}
                    for e in evaluations
                ],
                **({"Sources": self.sources} if len(self.sources) > 1 else {}),
                "Data": [
                    {"packed corpus": key, "training": value, "validation": self.validation_report[key]}
                    for key, value in self.corpus_report.items()
                    if key in _CORPUS_FIGURES
                ],
            },
            files={"samples.md": "samples"},
            samples=self.samples_text(),
        )

    def about(self, corpus: str) -> str:
        """What the model is, as a sentence."""
        config, model = self.config, self.trainer.model
        embeddings = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        sizes = [sum(p.numel() for p in model.parameters()) / 1e6, sum(embeddings.values()) / 1e6]
        start = "from scratch"
        if config.from_decoder is not None:
            start = f"from the decoder {config.from_decoder.path}"
        elif config.checkpoint is not None:
            start = f"from the weights of {config.checkpoint.path}"
        article = "An" if self.stack.name.startswith("e") else "A"
        return (
            f"{article} {self.stack.name} of {sizes[0]:.1f} M parameters, {sizes[1]:.1f} M of them in embeddings, "
            f"pretrained {start} with hf_llm on {corpus}."
        )

    def samples(self) -> list[tuple[str, str]]:
        trainer = self.trainer
        # a single process cannot run a sharded model
        if not self.args.should_save or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            return []
        with preserved_rng():
            samples = draw_samples(trainer.model, self.tokenizer, **dataclasses.asdict(self.config.samples))
        return [(sample.prompt, sample.output) for sample in samples]

    def samples_text(self) -> str:
        """Samples as Markdown, also written to `samples.md`."""
        blocks = [
            f"**Prompt**\n\n{fenced(prompt)}\n\n**Output**\n\n{fenced(output)}\n" for prompt, output in self.samples()
        ]
        text = "\n---\n\n".join(blocks) or "No samples: give the run samples.prompts.\n"
        if self.args.should_save:
            (self.run_dir / "samples.md").write_text(text, encoding="utf-8")
        return text


def kept_tokenizer(
    folder: Path, section: TokenizerSection, data: object, texts: Iterable[str], **options
) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, if it was trained by the same settings on the same data; else a new one, kept there.

    Args:
        data: where the texts come from, JSON-able.
        texts: read if there is none yet.
        options: of `train_tokenizer`.
    """
    made_with = {**dataclasses.asdict(section), "data": data}
    note = folder / "made_with.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == made_with:
        return AutoTokenizer.from_pretrained(folder)
    tokenizer = train_tokenizer(texts, section.algorithm, section.vocab_size, **options)
    tokenizer.save_pretrained(folder)
    note.write_text(json.dumps(made_with), encoding="utf-8")
    return tokenizer


def build_model_config(config: PretrainingConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The model's configuration: the `model` section, with what tokenizer and data decide filled in."""
    return new_model_config(config.model, tokenizer, config.longest_row)


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
        if getattr(part, "position_embedding", None) in TABLE_POSITIONS and length > part.max_position_embeddings:
            raise ValueError(
                f"data.{field} = {length} is longer than model.{name}max_position_embeddings = "
                f"{part.max_position_embeddings} allows with position_embedding = {part.position_embedding!r}"
            )
