"""A run that aligns a decoder by one of TRL's trainers, or any language model by PPO."""

import copy
import math
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig, Trainer
from transformers.integrations import TensorBoardCallback

from hf_llm.data.checkpoints import checkpoint_path
from hf_llm.data.tasks import SPLITS
from hf_llm.training.evaluation import preserved_rng
from hf_llm.training.opening import is_encoder_decoder, open_config
from hf_llm.training.report import Results
from hf_llm.training.samples import fenced
from hf_llm.tuning.job import BASE, usage

from .checks import check_prompts
from .critic import NAME as CRITIC
from .critic import base_of
from .methods import METHODS, AlignConfig, Method
from .policy import start_token_of
from .preferences import prompt_ids
from .rewards import resolve_rewards
from .runs import PreferenceRun, peel_adapter, tuner
from .sampling import plain_generation, sample
from .saving import CRITIC_FILE
from .trainer import PPOTrainer


class Alignment(PreferenceRun):
    """Trains by a method of `METHODS`, and evaluates on held-out data before and after. See `ALIGNMENTS`."""

    config_class = AlignConfig
    method: ClassVar[Method]

    @classmethod
    def from_dict(cls, settings: dict) -> AlignConfig:
        """As in `Run`. Raises ValueError on rewards or a critic that the method does not have, too."""
        config, method = super().from_dict(settings), cls.method
        if method.is_online and not config.rewards:
            raise ValueError(f"rewards: {cls.__name__} learns from rewards, name at least one (model or function)")
        if config.rewards and not method.is_online:
            raise ValueError(f"rewards: {cls.__name__} learns from {method.data}, and takes no rewards")
        if config.value_model is not None and method.trainer is not PPOTrainer:
            raise ValueError(f"value_model: {cls.__name__} has no critic, PPO has")
        return config

    def make_arguments(self):
        weights = [section.weight for section in self.config.reward_sections()]
        return super().make_arguments(**({"reward_weights": weights} if weights else {}))

    def prepare(self) -> Trainer:
        args, method = self.args, self.method
        model_config = self.check_model()
        dense_decoder = not method.takes_encoder_decoders and not model_config.num_experts
        if dense_decoder and args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # each step uses all
        with args.main_process_first():  # the first process fills the caches that the others read
            self.open_texts()
        if not method.is_online:
            self.settle_max_length(model_config)
        self.trainer = self.open_trainer()
        if method.is_online:
            batches = {"train": args.generation_batch_size // args.num_generations, "validation": 1, "test": 1}
            for split, batch in batches.items():
                check_prompts(self.trainer, f"the {split} split", self.data[split], batch)
        self.before = self.measure()
        if not method.is_online:
            for split in SPLITS:
                self.count_lengths(split)
        self.completed_before = self.complete()
        return self.trainer

    def check_model(self) -> PreTrainedConfig:
        """The model's configuration. Raises ValueError if the method cannot train it."""
        path, name = self.config.model.path, self.method.trainer.__name__
        two_stacks = is_encoder_decoder(self.config.model)
        if two_stacks and not self.method.takes_encoder_decoders:
            raise ValueError(
                f"model.path = {path!r} is an encoder-decoder, for which the objective of TRL's {name} means nothing: "
                "recipes/seq2seq.py trains it on targets, recipes/ppo.py on rewards"
            )
        self.auto_class = AutoModelForSeq2SeqLM if two_stacks else AutoModelForCausalLM
        config = open_config(self.config.model, self.auto_class)
        pads_left = self.method.is_online and not self.method.takes_encoder_decoders
        if pads_left and config.position_embedding in ("learned", "sinusoidal"):
            if config.position_ids_source == "arange":
                raise ValueError(
                    f"model.path = {path!r} has {config.position_embedding} positions, and {name} pads prompts on the "
                    "left without position_ids: set model.fields.position_ids_source to attention_mask"
                )
        return config

    def count_lengths(self, split: str) -> None:
        """Note how many examples TRL cut at `training.max_length`, or left out. Raises ValueError if none are left."""
        rows, limit = self.data[split], self.args.max_length or math.inf
        kept = self.trainer.prepared[rows._fingerprint]
        answers = [name for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in kept.column_names]
        lengths = (len(row["prompt_ids"]) + max(len(row[name]) for name in answers) for row in kept)
        cut = sum(length > limit for length in lengths)
        self.note_lengths(split, cut, len(rows) - len(kept), "a prompt that alone fills it leaves nothing to learn")

    def open_trainer(self) -> Trainer:
        model = self.open_model(self.auto_class, self.tokenizer, len(self.data["train"]))
        model, peft_config = peel_adapter(model)
        options = {}
        if self.method.is_online:
            columns = self.data["train"].column_names
            rewards = [section.resolve(columns) for section in self.config.reward_sections()]
            options["reward_funcs"] = resolve_rewards(*zip(*rewards), self.args)
        if self.method.trainer is PPOTrainer:
            options["value_model"] = self.config.value_model and checkpoint_path(self.config.value_model)
        elif peft_config is None:  # TRL would open the reference from the model's path, which may be another model
            if not self.method.is_online:
                options["ref_model"] = copy.deepcopy(model)
            elif self.args.beta:
                self.save_reference(model)
        return self.make_trainer(
            model, self.data["train"], self.data["validation"], peft_config=peft_config, **options
        )

    def save_reference(self, model) -> None:
        """Save the model as it is now: TRL opens the reference of online methods from `model.name_or_path`."""
        base = (self.run_dir / BASE).resolve()
        if self.args.should_save:
            model.save_pretrained(base)
        model.config._name_or_path = model.name_or_path = str(base)

    # ---- the figures, before and after ------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        """Figures of the test split, by the names of the report. They leave no trace in the logs of the run."""
        tensorboard = self.trainer.pop_callback(TensorBoardCallback)
        found = self.trainer.evaluate(self.data["test"])
        self.trainer.state.log_history.pop()
        if tensorboard is not None:
            self.trainer.add_callback(tensorboard)
        figures = {name: found.get(f"eval_{key}") for name, key in self.method.metrics.items()}
        return {name: value for name, value in figures.items() if value is not None}

    def complete(self) -> list[dict]:
        """The first test prompts with a sampled completion of each and, where there are rewards, its rewards."""
        trainer, section = self.trainer, self.config.completions
        rows = self.data["test"].select(range(min(section.count, len(self.data["test"]))))
        if not len(rows) or "prompt" not in rows.column_names or trainer.is_fsdp_enabled:
            return []
        prompts = rows["prompt"][:]
        model = trainer.accelerator.unwrap_model(trainer.model)
        base, was_training = base_of(model), model.training
        options = GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=section.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=[self.tokenizer.eos_token_id],
            decoder_start_token_id=start_token_of(base),
        )
        model.eval()
        with preserved_rng(), torch.no_grad(), plain_generation(base):
            torch.manual_seed(self.config.seed)
            ids = [sample(model, [prompt], options)[0] for prompt in prompt_ids(self.tokenizer, prompts)]
        model.train(was_training)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        if not isinstance(prompts[0], str):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        scores = [{} for _ in prompts]
        if self.method.is_online:
            rewards = trainer._calculate_rewards(list(rows), prompts, texts, ids)[: len(prompts)].tolist()
            scores = [dict(zip(trainer.reward_func_names, row)) for row in rewards]
            for pending in (trainer._pending_extra_logs, trainer._pending_metrics):  # not of a rollout
                pending.clear()
        return [
            {"prompt": prompt, "completion": text, **{k: None if math.isnan(v) else v for k, v in given.items()}}
            for prompt, text, given in zip(prompts, texts, scores, strict=True)
        ]

    def samples(self) -> list[tuple[str, str]]:
        return [(_plain(row["prompt"]), _plain(row["completion"])) for row in self.complete()]

    def evaluate(self) -> Results:
        """Figures of the test split, and completions of its first prompts."""
        metrics, files = self.measure(), {}
        shown = [
            {"prompt": new.pop("prompt"), "before": {k: v for k, v in old.items() if k != "prompt"}, "after": new}
            for old, new in zip(self.completed_before, self.complete(), strict=True)
        ]
        if shown:
            self.write_records("completions.jsonl", shown)
            files["completions.jsonl"] = "completions of test prompts before and after"
        if self.method.trainer is PPOTrainer:
            files[CRITIC_FILE] = "the critic, to go on with"
            delattr(base_of(self.trainer.accelerator.unwrap_model(self.trainer.model)), CRITIC)  # not the model's
        task = "text-generation" if self.auto_class is AutoModelForCausalLM else "text2text-generation"
        return self.results(
            task="text-generation",
            metrics=metrics,
            rows={split: len(self.trainer.prepared.get(rows._fingerprint, rows)) for split, rows in self.data.items()},
            usage=usage(self.config, task, self.auto_class, '"..."'),
            baselines={"before": self.before},
            notes=[
                f"Trained by {self.method.title}.",
                *(section.describe() for section in self.config.reward_sections()),
            ],
            files=files,
            samples="\n\n".join(map(_sample, shown)),
        )


# name of the method -> its job
ALIGNMENTS = {
    name: type(
        name.upper(),
        (Alignment,),
        {
            "method": method,
            "arguments_class": method.config,
            "trainer_class": tuner(method.trainer),
            "kind": method.data,
        },
    )
    for name, method in METHODS.items()
}


def _sample(row: dict) -> str:
    parts = ["**Prompt**", fenced(_plain(row["prompt"]))]
    for name in ("before", "after"):
        scores = ", ".join(f"{k} {v:.3f}" for k, v in row[name].items() if isinstance(v, float))
        parts += [f"**{name.title()}**" + (f" ({scores})" if scores else ""), fenced(_plain(row[name]["completion"]))]
    return "\n\n".join(parts)


def _plain(text: str | list) -> str:
    return text.strip() if isinstance(text, str) else "\n".join(f"{m['role']}: {m['content']}" for m in text)
