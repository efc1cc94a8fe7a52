"""A run that aligns a decoder by one of TRL's trainers, or any language model by PPO, from data to report."""

import copy
import functools
import json
import logging
import math
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.integrations import TensorBoardCallback

from hf_llm.data.checkpoints import checkpoint_path
from hf_llm.data.tasks import SPLITS
from hf_llm.training.evaluation import preserved_rng
from hf_llm.training.runs import run_directory, set_cpu_threads
from hf_llm.tuning.finetuning import describe_dataset
from hf_llm.tuning.models import open_config
from hf_llm.tuning.report import Results
from hf_llm.tuning.running import BASE, prepare_model, run

from . import PPOTrainer
from .checks import check_prompts
from .critic import NAME as CRITIC
from .methods import METHODS, AlignConfig, Method
from .preferences import load_split, prompt_ids
from .reward_sources import open_rewards
from .runs import (
    AlignmentMixin,
    draw_history,
    make_arguments,
    open_text_tokenizer,
    peel_adapter,
    settle_max_length,
)
from .saving import CRITIC_FILE, base_of


logger = logging.getLogger(__name__)


@functools.cache
def trainer_class(trainer: type) -> type:
    """A trainer of TRL, with what all tuning runs have."""
    return type(f"{trainer.__name__.removesuffix('Trainer')}Tuner", (AlignmentMixin, trainer), {})


def align(method: str, config: AlignConfig, card_template: Path | None = None) -> signal.Signals | None:
    """Train by a method of `METHODS`, evaluate on held-out data before and after, save and report.

    Returns:
        The signal that stopped the run (a checkpoint has been saved), or None if it is complete.

    Raises:
        ValueError: anything wrong with configuration, data, rewards or checkpoint, before training starts.
    """
    set_cpu_threads(config.cpu_threads)
    sections = config.reward_sections()
    weights = {"reward_weights": [section.weight for section in sections]} if sections else {}
    args = make_arguments(config, METHODS[method].config, **weights)
    with run_directory(args):
        return _Run(METHODS[method], config, args).run(card_template)


class _Run:
    """The parts of one run, made in order: data, tokenizer, rewards, model, trainer."""

    def __init__(self, method: Method, config: AlignConfig, args: Any):
        self.method, self.config, self.args = method, config, args
        model_config = self.check_model()
        dense_decoder = not method.takes_encoder_decoders and not model_config.num_experts
        if dense_decoder and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # each step uses all
        with args.main_process_first():  # the first process fills the caches that the others read
            self.data = {split: load_split(config.data, method.data, split) for split in SPLITS}
            self.tokenizer = open_text_tokenizer(config, self.data)
        self.notes: list[str] = []
        if not method.is_online:
            settle_max_length(config, args, model_config, self.tokenizer)
        self.rewards = open_rewards(config.reward_sections(), self.data["train"].column_names, args)
        self.trainer = self.make_trainer()

    def check_model(self) -> PreTrainedConfig:
        """The model's configuration. ValueError: this method cannot train it."""
        path, name = checkpoint_path(self.config.model.path), self.method.trainer.__name__
        try:
            given = AutoConfig.from_pretrained(path, revision=self.config.model.revision)
        except (OSError, ValueError) as error:
            raise ValueError(f"model.path = {self.config.model.path!r} is no checkpoint: {error}") from error
        if given.is_encoder_decoder and not self.method.takes_encoder_decoders:
            raise ValueError(
                f"model.path = {self.config.model.path!r} is an encoder-decoder, for which the objective of TRL's "
                f"{name} means nothing: recipes/seq2seq.py trains it on targets, recipes/ppo.py on rewards"
            )
        self.auto_class = AutoModelForSeq2SeqLM if given.is_encoder_decoder else AutoModelForCausalLM
        config = open_config(self.config.model, self.auto_class)
        pads_left = self.method.is_online and not self.method.takes_encoder_decoders
        if pads_left and config.position_embedding in ("learned", "sinusoidal"):
            if config.position_ids_source == "arange":
                raise ValueError(
                    f"model.path = {self.config.model.path!r} has {config.position_embedding} positions, and {name} "
                    "pads prompts on the left without telling positions: set model.fields.position_ids_source to "
                    "attention_mask"
                )
        return config

    def report_length(self, split: str) -> list[str]:
        """Warn of examples that are longer than `training.max_length`; the same as sentences for the card.

        Raises:
            ValueError: nothing is left.
        """
        limit, rows = self.args.max_length, self.data[split]
        kept = self.trainer.prepared[rows._fingerprint]
        answers = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in kept.column_names]
        lengths = [len(row["prompt_ids"]) + max(len(row[name]) for name in answers) for row in kept]
        cut = sum(length > (limit or math.inf) for length in lengths)
        of_all = f"of {len(rows):,} examples of the {split} split"
        if not len(kept):
            raise ValueError(f"training.max_length = {limit}: every prompt of the {split} split alone fills it")
        notes = []
        if cut:
            notes.append(f"{cut:,} {of_all} are longer than training.max_length = {limit} tokens and were cut.")
        if left_out := len(rows) - len(kept):
            notes.append(f"{left_out:,} {of_all} were left out: their prompts alone fill {limit} tokens.")
        for note in notes:
            logger.warning(note)
        return notes

    def make_trainer(self):
        model = prepare_model(
            self.config, self.auto_class, self.tokenizer, self.args, num_samples=len(self.data["train"])
        )
        model, peft_config = peel_adapter(model)
        special = {}
        if self.method.trainer is PPOTrainer:
            special = {"reward_funcs": self.rewards.raw, "reward_processing_classes": self.rewards.tokenizers}
            special["value_model"] = self.config.value_model and checkpoint_path(self.config.value_model)
        elif self.method.is_online:
            special = {"reward_funcs": self.rewards.functions}
            self.check_prompts(model)
            self.save_reference(model, peft_config)
        elif peft_config is None:
            special = {"ref_model": copy.deepcopy(model)}  # TRL would open the path, which may be another model
        return trainer_class(self.method.trainer)(
            model=model,
            args=self.args,
            train_dataset=self.data["train"],
            eval_dataset=self.data["validation"],
            processing_class=self.tokenizer,
            peft_config=peft_config,
            **special,
        )

    def check_prompts(self, model) -> None:
        batch = self.args.generation_batch_size // self.args.num_generations
        for split, least in (("train", batch), ("validation", 1), ("test", 1)):
            check_prompts(
                f"the {split} split",
                self.data[split],
                least,
                model,
                self.args.max_completion_length,
                lambda prompts: prompt_ids(self.tokenizer, prompts),
            )

    def save_reference(self, model, peft_config) -> None:
        """Save the model as it is now, where the trainer needs a reference, which it opens from a folder."""
        if self.args.beta == 0 or peft_config is not None:
            return
        base = Path(self.config.output_dir, BASE).resolve()
        if self.args.should_save:
            model.save_pretrained(base)
        model.config._name_or_path = model.name_or_path = str(base)

    # ---- training and the final figures -----------------------------------------------------------------------------

    def run(self, card_template: Path | None) -> signal.Signals | None:
        self.before = self.measure()
        if not self.method.is_online:
            self.notes = [note for split in SPLITS for note in self.report_length(split)]
        self.completed_before = self.complete()
        facts = {"fingerprint": self.data["train"]._fingerprint}
        return run(self.trainer, self.config, self.evaluate, card_template, facts)

    def measure(self) -> dict[str, float]:
        """Figures of the test split, by our names."""
        tensorboard = self.trainer.pop_callback(TensorBoardCallback)
        found = self.trainer.evaluate(self.data["test"])
        self.trainer.state.log_history.pop()  # not a measurement of the validation split
        if tensorboard is not None:
            self.trainer.add_callback(tensorboard)
        figures = {name: found.get(f"eval_{key}") for name, key in self.method.metrics.items()}
        return {name: value for name, value in figures.items() if value is not None}

    def complete(self) -> list[dict]:
        """The first test prompts with a completion of each and, where there are rewards, what it gets."""
        trainer, section = self.trainer, self.config.completions
        rows = self.data["test"].select(range(min(section.count, len(self.data["test"]))))
        if not len(rows) or "prompt" not in rows.column_names or trainer.is_fsdp_enabled:
            return []
        prompts = rows["prompt"][:]
        model = trainer.accelerator.unwrap_model(trainer.model)
        was_training = model.training
        model.eval()
        with preserved_rng(), torch.no_grad():
            torch.manual_seed(self.config.seed)
            texts = [self.complete_one(model, ids) for ids in prompt_ids(self.tokenizer, prompts)]
        model.train(was_training)
        if not isinstance(prompts[0], str):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        scores = self.rewards.score(prompts, texts, rows, trainer.state)
        return [
            {"prompt": prompt, "completion": text, **{name: values[i] for name, values in scores.items()}}
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]

    def complete_one(self, model, ids: list[int]) -> str:
        output = model.generate(
            input_ids=torch.tensor([ids], device=model.device),
            max_new_tokens=self.config.completions.max_new_tokens,
            do_sample=True,
            top_k=0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        begin = 0 if model.config.is_encoder_decoder else len(ids)
        return self.tokenizer.decode(output[0, begin:], skip_special_tokens=True)

    def evaluate(self) -> Results:
        """Measure the test split, and write completions of its first prompts."""
        metrics, after = self.measure(), self.complete()
        if self.args.should_save and after:
            with open(Path(self.config.output_dir, "completions.jsonl"), "w", encoding="utf-8") as file:
                for old, new in zip(self.completed_before, after, strict=True):
                    row = {"prompt": new["prompt"], "before": _without_prompt(old), "after": _without_prompt(new)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        files = {"completions.jsonl": "completions of test prompts before and after"} if after else {}
        if self.method.trainer is PPOTrainer:
            files[CRITIC_FILE] = "the critic, to go on with"
            delattr(base_of(self.trainer.accelerator.unwrap_model(self.trainer.model)), CRITIC)  # not the model's
        return Results(
            task="text-generation",
            dataset=describe_dataset(self.config.data.dataset),
            metrics=metrics,
            rows={split: len(self.trainer.prepared.get(rows._fingerprint, rows)) for split, rows in self.data.items()},
            usage=_USAGE[self.auto_class].format(path=Path(self.config.output_dir).name),
            baselines={"before": self.before},
            notes=[f"Trained by {self.method.title} ({self.method.source}).", *self.rewards.notes, *self.notes],
            figures={"training.png": draw_history(self.method.panels, self.trainer.state.log_history)},
            files=files,
            samples=_samples(self.completed_before, after),
        )


_USAGE = {
    AutoModelForCausalLM: """import hf_llm
from transformers import pipeline

generate = pipeline("text-generation", "{path}")
print(generate("...", return_full_text=False)[0]["generated_text"])""",
    AutoModelForSeq2SeqLM: """import hf_llm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model = AutoModelForSeq2SeqLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")
output = model.generate(**tokenizer("...", return_tensors="pt"))
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
}


def _without_prompt(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "prompt"}


def _samples(before: list[dict], after: list[dict]) -> str:
    blocks = []
    for old, new in zip(before, after):
        parts = [f"**Prompt**\n\n````text\n{_plain(new['prompt'])}\n````"]
        for name, row in (("Before", old), ("After", new)):
            scores = ", ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
            parts.append(
                f"**{name}**{f' ({scores})' if scores else ''}\n\n````text\n{_plain(row['completion'])}\n````"
            )
        blocks.append("\n\n".join(parts))
    return "\n\n".join(blocks)


def _plain(text: str | list) -> str:
    return text.strip() if isinstance(text, str) else "\n".join(f"{m['role']}: {m['content']}" for m in text)
