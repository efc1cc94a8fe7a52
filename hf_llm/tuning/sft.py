"""Supervised fine-tuning of decoders on conversations, instructions or text, with TRL's `SFTTrainer`."""

import copy
import logging
import math
from dataclasses import dataclass, field

import pyarrow.compute
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from hf_llm.training.evaluation import preserved_rng
from hf_llm.training.opening import is_encoder_decoder, open_config, open_tokenizer, text_limit
from hf_llm.training.report import Results

from .adapters import has_virtual_tokens
from .conversations import TURN_END, check_calls, read_texts, set_chat_template
from .job import DataSection, TuningConfig, TuningMixin, TuningRun, usage


logger = logging.getLogger(__name__)

# kinds of data that SFTTrainer knows, the most telling first -> their columns, and what the loss is over
FORMATS = {
    "conversation": (("messages",), "whole conversations"),
    "prompt and completion": (("prompt", "completion"), "completions"),
    "text": (("text",), "whole texts"),
}


@dataclass(kw_only=True)
class SftData(DataSection):
    """
    Attributes:
        dataset: anything that `hf_llm.data.tasks.load_task` takes, with a column `messages` (role and content each;
            a content is a text or a list of text parts), columns `prompt` and `completion` (texts, or messages), or a
            column `text`.
        chat_template: None takes the tokenizer's; "chatml", or a file with a Jinja template. To train on what the
            assistant says alone, it must mark that with {% generation %}, as "chatml" does.
    """

    chat_template: str | None = None
    max_validation_samples: int | None = 256


@dataclass
class SamplesSection:
    """
    Attributes:
        count: how many test prompts are answered before and after training, greedily.
        max_new_tokens: of an answer.
    """

    count: int = 3
    max_new_tokens: int = 64


@dataclass(kw_only=True)
class SftConfig(TuningConfig):
    """A run of `recipes/sft.py`.

    Attributes:
        data: what is learned from.
        samples: what is shown of it.
    """

    data: SftData
    samples: SamplesSection = field(default_factory=SamplesSection)


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
        lengths = pyarrow.compute.list_value_length(tokens.with_format("arrow")[:]["input_ids"]).to_numpy()
        longer = 0 if args.max_length is None else int((lengths > args.max_length).sum())
        left_out = 0 if packing else len(tokens) - len(prepared)
        fate = "were split over rows" if packing and args.packing_strategy != "bfd" else "were cut"
        self.prepared[dataset._fingerprint] = Prepared(len(tokens), longer - left_out, fate, left_out)
        return prepared

    def create_model_card(self, *args, **kwargs) -> None:
        """None of TRL's: the run writes a card from its own figures."""


class Sft(TuningRun):
    """Trains on conversations or texts, answers a few prompts before and after, saves and reports."""

    config_class = SftConfig
    arguments_class = SFTConfig
    managed = {
        "model_init_kwargs": "use the section model",
        "trust_remote_code": "hf_llm's own classes open the model",
        "chat_template_path": "use data.chat_template",
        "dataset_kwargs": "use the section data",
        "dataset_text_field": "name the column `text` by data.dataset.columns",
        "use_liger_kernel": "TRL's fused head is used already",
        "gradient_checkpointing": "use training.activation_checkpointing",
        "gradient_checkpointing_kwargs": "use training.activation_checkpointing_kwargs",
    }

    def make_arguments(self) -> SFTConfig:
        """TRL's, but activations are recomputed on accelerators alone, which lack memory."""
        args = self.arguments(activation_checkpointing=torch.accelerator.is_available())
        if args.packing and args.packing_strategy == "wrapped":
            raise ValueError(
                "training.packing_strategy = 'wrapped' lets packed texts see each other: use bfd or bfd_split"
            )
        if (args.packing or args.padding_free) and has_virtual_tokens(self.config.peft):
            raise ValueError(
                f"training.packing = {args.packing}, training.padding_free = {args.padding_free}: "
                f"peft.method = {self.config.peft['method']!r} drops the positions by which texts of one row are kept "
                "apart; use lora"
            )
        return args

    def prepare(self) -> SftTuner:
        if is_encoder_decoder(self.config.model):
            raise ValueError(
                f"model.path = {self.config.model.path!r} is an encoder-decoder, which this trainer does not support: "
                "take recipes/seq2seq.py"
            )
        model_config = open_config(self.config.model, AutoModelForCausalLM)
        with self.args.main_process_first():  # the first process fills the caches that the others read
            self.data = {split: self.read(texts, split) for split, texts in self.config.data.load().items()}
            self.kind = kind_of(self.data["train"])
            self.is_chat = has_messages(self.data["train"][0])
            self.tokenizer = self.open_tokenizer()
        limit = text_limit(model_config, self.tokenizer)
        if limit is not None and (self.args.max_length or limit + 1) > limit:
            raise ValueError(f"training.max_length = {self.args.max_length}: the model reads {limit} tokens at most")
        model = self.open_model(AutoModelForCausalLM, self.tokenizer, len(self.data["train"]))
        if self.is_chat:
            model.generation_config.eos_token_id = self.stop_tokens(model.generation_config.eos_token_id)
        trainer = self.trainer = SftTuner(
            model=model,
            args=self.args,
            train_dataset=self.data["train"],
            eval_dataset=self.data["validation"],
            processing_class=self.tokenizer,
        )
        self.report_length("train")
        self.report_length("validation")
        self.before = self.measure()
        self.report_length("test")
        self.answers_before = self.answers()
        return trainer

    def read(self, dataset: Dataset, split: str) -> Dataset:
        columns = list(FORMATS[kind_of(dataset)][0])
        dataset = read_texts(dataset.select_columns(columns), columns, split)
        if self.args.assistant_only_loss:
            check_answers(dataset, split)
        return dataset

    def open_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer, assistant_only = open_tokenizer(self.config.model), self.args.assistant_only_loss
        if self.is_chat:
            set_chat_template(tokenizer, self.config.data.chat_template, assistant_only)
            for split, texts in self.data.items():
                check_calls(texts, texts.column_names, split, tokenizer)
        elif assistant_only:
            raise ValueError(f"training.assistant_only_loss = True needs conversations, the data is {self.kind}")
        elif tokenizer.eos_token is None:
            raise ValueError("model: the tokenizer has no end token (eos_token), and texts must end: set one")
        return tokenizer

    def stop_tokens(self, ends: int | list[int] | None) -> list[int]:
        """Where generation ends: the model's own end tokens, the tokenizer's, and the end of a turn."""
        ends = ends if isinstance(ends, list) else [ends]
        turn_end = self.tokenizer.get_vocab().get(TURN_END)
        return sorted({i for i in [*ends, self.tokenizer.eos_token_id, turn_end] if i is not None})

    def report_length(self, split: str) -> None:
        """Warn of examples that are longer than `training.max_length`, and note it for the card.

        Raises:
            ValueError: nothing is left.
        """
        prepared = self.trainer.prepared[self.data[split]._fingerprint]
        limit, given = f"training.max_length = {self.args.max_length}", f"{prepared.given:,} examples of the {split}"
        if prepared.left_out == prepared.given or self.args.max_length == 1:  # the first token is never predicted
            raise ValueError(f"{limit} leaves nothing to learn of the {split} split: raise it")
        for count, fate in (
            (prepared.cut, f"are longer than {limit} tokens and {prepared.fate}"),
            (prepared.left_out, f"were left out: {limit} leaves nothing to learn"),
        ):
            if count:
                self.notes.append(f"{count:,} of {given} split {fate}.")
                logger.warning(self.notes[-1])

    # ---- the figures, before and after ------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        """Loss and perplexity of the test split, over the tokens that are trained on."""
        found = self.trainer.evaluate(self.data["test"], metric_key_prefix="test")
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
        rows = self.data["test"].select(range(min(section.count, len(self.data["test"]))))
        with preserved_rng(), torch.no_grad():
            pairs = [self.answer(model, prompt_text(self.tokenizer, row)) for row in rows]
        model.train(was_training)
        return pairs

    def samples(self) -> list[tuple[str, str]]:
        return self.answers()

    def answer(self, model, prompt: str) -> tuple[str, str]:
        tokenizer = self.tokenizer
        ids = tokenizer(prompt, add_special_tokens=not self.is_chat)["input_ids"]
        if not ids:  # of an empty prompt
            ids = [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
        inputs = torch.tensor([ids], device=model.device)
        options = {"max_new_tokens": self.config.samples.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
        output = model.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, **options)
        return prompt, tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)

    def evaluate(self) -> Results:
        learned = "what the assistant says" if self.args.assistant_only_loss else FORMATS[self.kind][1]
        if self.args.completion_only_loss is False and self.kind == "prompt and completion":
            learned = "prompts and completions"
        prepared = {split: self.trainer.prepared[texts._fingerprint] for split, texts in self.data.items()}
        shown = zip(self.answers_before, self.answers(), strict=True)
        example = '[{"role": "user", "content": "Hello!"}]' if self.is_chat else '"..."'
        return self.results(
            task="text-generation",
            metrics=self.measure(),
            rows={split: found.given - found.left_out for split, found in prepared.items()},
            usage=usage(self.config, "text-generation", AutoModelForCausalLM, example),
            baselines={"before fine-tuning": self.before},
            notes=[f"The loss is over {learned}."],
            samples="\n\n".join(_sample_text(prompt, before, after) for (prompt, before), (_, after) in shown),
        )


def _sample_text(prompt: str, before: str, after: str) -> str:
    parts = {"Prompt": prompt, "Before": before, "After": after}
    return "\n\n".join(f"**{name}**\n\n````text\n{text.strip()}\n````" for name, text in parts.items())


# ---- data -----------------------------------------------------------------------------------------------------------


def kind_of(dataset: Dataset) -> str:
    """The key of `FORMATS` that a data set has.

    Raises:
        ValueError: it has none; its columns are listed.
    """
    for kind, (columns, _) in FORMATS.items():
        if set(columns) <= set(dataset.column_names):
            return kind
    wanted = ", ".join(" and ".join(f"`{c}`" for c in columns) for columns, _ in FORMATS.values())
    raise ValueError(
        f"data.dataset: its columns are {dataset.column_names}; needed are {wanted} (rename by data.dataset.columns)"
    )


def check_answers(dataset: Dataset, split: str) -> None:
    """Raise ValueError on the first conversation in which no assistant says anything."""
    for column in set(dataset.column_names) - {"prompt"}:
        for i, value in enumerate(dataset[column]):
            if isinstance(value, list) and all(message["role"] != "assistant" for message in value):
                raise ValueError(
                    f"training.assistant_only_loss = True: in example {i} of {split} no assistant says anything"
                )


def has_messages(row: dict) -> bool:
    """Whether an example is made of messages (role and content), which a chat template turns into text."""
    return isinstance(row.get("messages", row.get("prompt")), list)


def prompt_text(tokenizer: PreTrainedTokenizerBase, row: dict) -> str:
    """What an example begins with, up to where the model goes on: the first message of a conversation, say."""
    if has_messages(row):
        opening = row["messages"][:1] if "messages" in row else row["prompt"]
        return tokenizer.apply_chat_template(opening, tokenize=False, add_generation_prompt=True)
    return row["prompt"] if "prompt" in row else row["text"][: len(row["text"]) // 4]
