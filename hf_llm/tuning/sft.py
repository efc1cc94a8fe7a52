"""Supervised fine-tuning of decoders on conversations, instructions or text, with TRL's `SFTTrainer`."""

import copy
import logging
import math
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pyarrow.compute
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedConfig
from trl import SFTConfig, SFTTrainer

from hf_llm.data.tasks import SPLITS, load_task
from hf_llm.training.evaluation import preserved_rng
from hf_llm.training.runs import run_directory, set_cpu_threads

from .adapters import has_virtual_tokens
from .config import ModelSection, TuningConfig, load_tuning_config, training_arguments
from .conversations import check_calls, read_texts
from .finetuning import describe_dataset
from .models import is_encoder_decoder, open_config, open_tokenizer, text_limit
from .pairs import take
from .report import Results
from .running import TuningMixin, prepare_model, run
from .sft_data import (
    FORMATS,
    TURN_END,
    check_answers,
    has_messages,
    kind_of,
    prompt_text,
    set_chat_template,
)


logger = logging.getLogger(__name__)

MANAGED = {
    "model_init_kwargs": "use the section model",
    "trust_remote_code": "hf_llm's own classes open the model",
    "chat_template_path": "use data.chat_template",
    "dataset_kwargs": "use the section data",
    "dataset_text_field": "name the column `text` by data.dataset.columns",
    "use_liger_kernel": "TRL's fused head is used already",
    "gradient_checkpointing": "use training.activation_checkpointing",
    "gradient_checkpointing_kwargs": "use training.activation_checkpointing_kwargs",
}


@dataclass
class SftData:
    """
    Attributes:
        dataset: anything that `hf_llm.data.tasks.load_task` takes, with a column `messages` (role and content each;
            a content is a text or a list of text parts), columns `prompt` and `completion` (texts, or messages), or a
            column `text`.
        chat_template: None takes the tokenizer's; "chatml", or a file with a Jinja template. To train on what the
            assistant says alone, it must mark that with {% generation %}, as "chatml" does.
        max_train_samples, max_validation_samples, max_test_samples: take that many examples of a split, drawn once.
    """

    dataset: Any
    chat_template: str | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = 256
    max_test_samples: int | None = None


@dataclass
class SamplesSection:
    """How many test prompts are answered before and after training, greedily, by at most so many tokens."""

    count: int = 3
    max_new_tokens: int = 64


@dataclass(kw_only=True)
class SftConfig(TuningConfig):
    """
    Attributes:
        data: what is learned from.
        samples: what is shown of it.
    """

    data: SftData
    samples: SamplesSection = field(default_factory=SamplesSection)


def load_sft_config(path: str | Path, overrides: list[str] = ()) -> SftConfig:
    """The run that a YAML file and `--section.field value` overrides describe. ValueError names what is wrong."""
    return load_tuning_config(SftConfig, SFTConfig, path, overrides, MANAGED)


@dataclass(frozen=True)
class Prepared:
    """What `max_length` did to a data set.

    Attributes:
        given: examples.
        cut: of them that are longer, and learned from.
        fate: what became of those.
        left_out: of them in whose first (or last) `max_length` tokens nothing is to be learned.
    """

    given: int
    cut: int = 0
    fate: str = "were cut"
    left_out: int = 0

    @classmethod
    def of(cls, tokens: Dataset, prepared: Dataset, args: SFTConfig, packing: bool) -> "Prepared":
        """
        Args:
            tokens: `input_ids` and `labels` of whole examples.
            prepared: what the trainer learns from.
        """
        limit = args.max_length
        if limit is None:
            return cls(len(tokens))
        lengths = pyarrow.compute.list_value_length(tokens.with_format("arrow")[:]["input_ids"]).to_numpy()
        longer = numpy.flatnonzero(lengths > limit)
        if packing:
            fate = cls.fate if args.packing_strategy == "bfd" else "were split over rows"
            return cls(len(tokens), len(longer), fate)
        kept = slice(limit) if args.truncation_mode == "keep_start" else slice(-limit, None)
        cut = sum(any(label != -100 for label in row["labels"][kept]) for row in tokens.select(longer))
        return cls(len(tokens), cut, left_out=len(tokens) - len(prepared))


class SftTuner(TuningMixin, SFTTrainer):
    """
    Attributes:
        prepared: fingerprint of each data set -> what became of it.
    """

    def __init__(self, *args, **kwargs):
        self.prepared: dict[str, Prepared] = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, args, packing, *names):
        """As in TRL, in two steps: token ids, then what `max_length` leaves of them, which is counted."""
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        tokens = super()._prepare_dataset(dataset, processing_class, whole, False, *names)
        prepared = super()._prepare_dataset(tokens, processing_class, args, packing, *names)
        self.prepared[dataset._fingerprint] = Prepared.of(tokens, prepared, args, packing)
        return prepared

    def create_model_card(self, *args, **kwargs) -> None:
        """None of TRL's: the run writes a card from its own figures."""


def train_sft(config: SftConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Train, evaluate, save and report; go on from a checkpoint where there is one.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: anything wrong with the configuration, the data or the checkpoint, before training starts.
    """
    set_cpu_threads(config.cpu_threads)
    open_decoder_config(config.model)
    args = sft_arguments(config)
    check_packing(config, args)
    with run_directory(args):
        return _Run(config, args).run(card_template)


class _Run:
    """The parts of one run, made in order: texts, tokenizer, model, trainer."""

    def __init__(self, config: SftConfig, args: SFTConfig):
        self.config = config
        self.args = args

    def run(self, card_template: Path | None) -> signal.Signals | None:
        data = self.config.data
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.texts = {split: self.load(split, getattr(data, f"max_{split}_samples")) for split in SPLITS}
            self.tokenizer = open_tokenizer(self.config.model)
            self.kind = kind_of(self.texts["train"])
            self.is_chat = has_messages(self.texts["train"][0])
            if self.is_chat:
                set_chat_template(self.tokenizer, data.chat_template, self.args.assistant_only_loss)
                for split, texts in self.texts.items():
                    check_calls(texts, texts.column_names, split, self.tokenizer)
            elif self.args.assistant_only_loss:
                raise ValueError(f"training.assistant_only_loss = True needs conversations, the data is {self.kind}")
            elif self.tokenizer.eos_token is None:
                raise ValueError("model: the tokenizer has no end token (eos_token), and texts must end: set one")
        self.trainer = self.make_trainer()
        self.before = self.measure()
        self.notes = [note for split in SPLITS for note in self.report_length(split)]
        self.samples_before = self.answers()
        facts = {"fingerprint": self.texts["train"]._fingerprint}
        return run(self.trainer, self.config, self.evaluate, card_template, facts)

    def load(self, split: str, limit: int | None) -> Dataset:
        dataset = load_task(self.config.data.dataset, split)
        columns = list(FORMATS[kind_of(dataset)])
        dataset = read_texts(dataset.select_columns(columns), columns, split)
        if self.args.assistant_only_loss:
            check_answers(dataset, split)
        return take(dataset, limit, split)

    def report_length(self, split: str) -> list[str]:
        """Warn of examples that are longer than `training.max_length`; the same as sentences for the card.

        Raises:
            ValueError: nothing is left.
        """
        prepared = self.prepared(split)
        limit, given = f"training.max_length = {self.args.max_length}", f"{prepared.given:,} examples of the {split}"
        if prepared.left_out == prepared.given:
            raise ValueError(f"{limit} leaves nothing to learn of the {split} split: raise it")
        notes = []
        if prepared.cut:
            notes.append(f"{prepared.cut:,} of {given} split are longer than {limit} tokens and {prepared.fate}.")
        if prepared.left_out:
            notes.append(f"{prepared.left_out:,} of {given} split were left out: {limit} leaves nothing to learn.")
        for note in notes:
            logger.warning(note)
        return notes

    def prepared(self, split: str) -> Prepared:
        return self.trainer.prepared[self.texts[split]._fingerprint]

    def make_trainer(self) -> SftTuner:
        model = prepare_model(
            self.config, AutoModelForCausalLM, self.tokenizer, self.args, num_samples=len(self.texts["train"])
        )
        limit = text_limit(model.config, self.tokenizer)
        if limit is not None and (self.args.max_length or limit + 1) > limit:
            raise ValueError(f"training.max_length = {self.args.max_length}: the model reads {limit} tokens at most")
        if self.is_chat:
            model.generation_config.eos_token_id = self.stop_tokens(model.generation_config.eos_token_id)
        return SftTuner(
            model=model,
            args=self.args,
            train_dataset=self.texts["train"],
            eval_dataset=self.texts["validation"],
            processing_class=self.tokenizer,
        )

    def stop_tokens(self, ends: int | list[int] | None) -> list[int]:
        """Where generation ends: the model's own end tokens, the tokenizer's, and the end of a turn."""
        ends = ends if isinstance(ends, list) else [ends]
        vocabulary = self.tokenizer.get_vocab()
        return sorted({i for i in [*ends, self.tokenizer.eos_token_id, vocabulary.get(TURN_END)] if i is not None})

    # ---- the final figures ------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        """Loss and perplexity of the test split, over the tokens that are trained on."""
        found = self.trainer.evaluate(self.texts["test"], metric_key_prefix="test")
        if "test_loss" not in found:
            raise ValueError(
                f"training.max_length = {self.args.max_length} leaves nothing to learn of the test split: raise it"
            )
        return {"loss": found["test_loss"], "perplexity": math.exp(min(found["test_loss"], 700))}

    def answers(self) -> list[tuple[str, str]]:
        """(prompt, what the model makes of it) for the first test examples."""
        trainer, section = self.trainer, self.config.samples
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # a single process cannot run a sharded model
            return []
        model = trainer.accelerator.unwrap_model(trainer.model)
        was_training = model.training
        model.eval()
        pairs = []
        with preserved_rng(), torch.no_grad():
            for row in self.texts["test"].select(range(min(section.count, len(self.texts["test"])))):
                prompt = prompt_text(self.tokenizer, row)
                ids = self.tokenizer(prompt, add_special_tokens=not self.is_chat)["input_ids"]
                if not ids:  # of an empty prompt
                    begin = self.tokenizer.bos_token_id
                    ids = [self.tokenizer.eos_token_id if begin is None else begin]
                inputs = torch.tensor([ids], device=model.device)
                output = model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=section.max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
                said = self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
                pairs.append((prompt, said))
        model.train(was_training)
        return pairs

    def evaluate(self) -> Results:
        shown = zip(self.samples_before, self.answers(), strict=True)
        learned = "what the assistant says" if self.args.assistant_only_loss else _LEARNED[self.kind]
        if self.args.completion_only_loss is False and self.kind == "prompt and completion":
            learned = "prompts and completions"
        return Results(
            task="text-generation",
            dataset=describe_dataset(self.config.data.dataset),
            metrics=self.measure(),
            rows={split: found.given - found.left_out for split in SPLITS for found in [self.prepared(split)]},
            usage=_USAGE.format(path=Path(self.config.output_dir).name, prompt=_EXAMPLE if self.is_chat else '"..."'),
            baselines={"before fine-tuning": self.before},
            notes=[f"The loss is over {learned}.", *self.notes],
            samples="\n\n".join(_sample_text(prompt, before, after) for (prompt, before), (_, after) in shown),
        )


_LEARNED = {"conversation": "whole conversations", "prompt and completion": "completions", "text": "whole texts"}
_EXAMPLE = '[{"role": "user", "content": "Hello!"}]'
_USAGE = """import hf_llm
from transformers import pipeline

generate = pipeline("text-generation", "{path}")
print(generate({prompt}, return_full_text=False)[0]["generated_text"])"""


def _sample_text(prompt: str, before: str, after: str) -> str:
    parts = {"Prompt": prompt, "Before": before, "After": after}
    return "\n\n".join(f"**{name}**\n\n````text\n{text.strip()}\n````" for name, text in parts.items())


def open_decoder_config(section: ModelSection) -> PreTrainedConfig:
    """The model's configuration; refuses what SFTTrainer would train on a meaningless objective.

    Raises:
        ValueError: the path is no checkpoint, or none of a decoder.
    """
    if is_encoder_decoder(section):
        raise ValueError(
            f"model.path = {section.path!r} is an encoder-decoder, which this trainer does not support: "
            "take recipes/seq2seq.py"
        )
    return open_config(section, AutoModelForCausalLM)


def sft_arguments(config: SftConfig) -> SFTConfig:
    """The run's arguments; activations are recomputed on accelerators alone, which lack memory."""
    return training_arguments(config, SFTConfig, activation_checkpointing=torch.accelerator.is_available())


def check_packing(config: SftConfig, args: SFTConfig) -> None:
    """Raise ValueError where texts of one row would see each other: their positions keep them apart."""
    if args.packing and args.packing_strategy == "wrapped":
        raise ValueError(
            "training.packing_strategy = 'wrapped' lets packed texts see each other: use bfd or bfd_split"
        )
    if (args.packing or args.padding_free) and config.peft is not None and has_virtual_tokens(config.peft):
        raise ValueError(
            f"training.packing = {args.packing}, training.padding_free = {args.padding_free}: peft.method = "
            f"{config.peft['method']!r} drops the positions by which texts of one row are kept apart; use lora"
        )
