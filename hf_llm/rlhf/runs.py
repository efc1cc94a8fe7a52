"""What the runs on preferences and rewards share, beside the jobs of `hf_llm.tuning`: trainers of TRL on texts."""

import functools
import logging
from typing import ClassVar

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from hf_llm.data.tasks import SPLITS
from hf_llm.training.opening import open_tokenizer, text_limit
from hf_llm.training.report import draw_history
from hf_llm.tuning.conversations import check_calls, is_conversation, set_chat_template
from hf_llm.tuning.job import TuningMixin, TuningRun

from .preferences import load_split
from .rollout import ShufflesByEpoch


logger = logging.getLogger(__name__)

# (heading, keys of the log) of the panels of `curves.png`, of which a run has those that its trainer logs
PANELS = (
    ("loss", ("loss",)),
    ("accuracy", ("accuracy", "rewards/accuracies")),
    ("margin", ("margin",)),
    ("score", ("mean_reward",)),
    ("implicit reward", ("rewards/chosen", "rewards/rejected")),
    ("log-probability", ("logps/chosen", "logps/rejected")),
    ("reward", ("reward", "total_reward")),
    ("rewards by source", ("rewards/*/mean",)),
    ("KL (nats)", ("kl",)),
    ("KL coefficient", ("kl_coef",)),
    ("tokens", ("completions/mean_length",)),
    ("ended by EOS (share)", ("eos_rate",)),
    ("entropy", ("entropy", "policy/entropy")),
    ("clipped (share)", ("policy/clip_fraction", "value/clip_fraction")),
    ("value loss", ("value/loss",)),
    ("explained variance", ("value/explained_variance",)),
)


class AlignmentMixin(ShufflesByEpoch, TuningMixin):
    """`TuningMixin` for TRL's trainers.

    Attributes:
        prepared: fingerprint of a data set -> its tokenized examples, without those that the trainer filtered out.
    """

    def __init__(self, *args, **kwargs):
        self.prepared: dict[str, Dataset] = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        prepared = self.prepared[dataset._fingerprint] = super()._prepare_dataset(dataset, *args, **kwargs)
        return prepared

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the run writes the model card."""

    def _get_eval_sampler(self, eval_dataset):
        """TRL's, which repeats each prompt for its group of completions."""
        return super(TuningMixin, self)._get_eval_sampler(eval_dataset)


@functools.cache
def tuner(trainer: type[Trainer]) -> type[Trainer]:
    """A trainer of TRL with `AlignmentMixin`."""
    return type(f"{trainer.__name__.removesuffix('Trainer')}Tuner", (AlignmentMixin, trainer), {})


class PreferenceRun(TuningRun):
    """Base of the runs on preferences and rewards.

    A subclass gives, as attributes of the class:
        trainer_class: of TRL, by `tuner`.
        kind: of its data, a key of `preferences.KINDS`.
        needs_end: whether the tokenizer must have an end token.
    """

    managed = {
        "model_init_kwargs": "use the section model",
        "trust_remote_code": "hf_llm's own classes open the model",
        "chat_template_path": "use data.chat_template",
        "eos_token": "the tokenizer has it",
        "pad_token": "the tokenizer has it",
        "reward_weights": "use the weight of each of rewards",
        "use_liger_kernel": "TRL's fused head is used already",
        "precompute_ref_log_probs": "the reference is there throughout: a copy, or the model without its adapter",
        "gradient_checkpointing": "use training.activation_checkpointing",
        "gradient_checkpointing_kwargs": "use training.activation_checkpointing_kwargs",
        "remove_unused_columns": "the trainer knows which columns it needs",
    }
    trainer_class: ClassVar[type[Trainer]]
    kind: ClassVar[str]
    needs_end: ClassVar[bool] = True

    def make_arguments(self, **settings) -> TrainingArguments:
        """TRL's, but activations are recomputed by default on accelerators alone, where memory is scarce."""
        return self.arguments(activation_checkpointing=torch.accelerator.is_available(), **settings)

    def open_texts(self) -> None:
        """Set `data` and `tokenizer`.

        Raises:
            ValueError: no such data or tokenizer, no pad or end token, no chat template for conversations, or one that
                does not write tool calls.
        """
        self.data = {split: load_split(self.config.data, self.kind, split) for split in SPLITS}
        self.tokenizer = open_tokenizer(self.config.model)
        if self.needs_end and self.tokenizer.eos_token_id is None:
            raise ValueError("model: the tokenizer has no end token (eos_token), and completions must end: set one")
        first = self.data["train"][0]
        columns = [name for name in ("prompt", "completion", "chosen", "rejected") if is_conversation(first.get(name))]
        if columns:
            set_chat_template(self.tokenizer, self.config.data.chat_template)
            for split, texts in self.data.items():
                check_calls(texts, columns, split, self.tokenizer)

    def settle_max_length(self, model_config: PreTrainedConfig) -> None:
        """Lower the default of `args.max_length` to the longest text that the model can read.

        Raises:
            ValueError: the configuration sets more.
        """
        limit, args = text_limit(model_config, self.tokenizer), self.args
        if limit is None or (args.max_length is not None and args.max_length <= limit):
            return
        if "max_length" in self.config.training:
            raise ValueError(f"training.max_length = {args.max_length}, but the model reads {limit} tokens at most")
        args.max_length = limit

    def note_lengths(self, split: str, cut: int, left_out: int, why: str) -> None:
        """Warn of examples that `training.max_length` cut or left out, and say so on the card.

        Raises:
            ValueError: none are left.
        """
        total, limit = len(self.data[split]), f"training.max_length = {self.args.max_length}"
        if left_out == total:
            raise ValueError(f"{limit} leaves nothing of the {split} split: {why}")
        for count, fate in (
            (cut, f"are longer than {limit} tokens and were cut."),
            (left_out, f"were left out for {limit}: {why}."),
        ):
            if count:
                self.notes.append(f"{count:,} of {total:,} examples of the {split} split {fate}")
                logger.warning(self.notes[-1])

    def make_trainer(self, model: PreTrainedModel, train: Dataset, validation: Dataset, **options) -> Trainer:
        return self.trainer_class(
            model=model,
            args=self.args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=self.tokenizer,
            **options,
        )

    def results(self, figures: dict | None = None, **parts):
        curves = functools.partial(draw_history, history=self.trainer.state.log_history, panels=PANELS)
        return super().results(figures={"curves.png": curves, **(figures or {})}, **parts)


def peel_adapter(model: PreTrainedModel | PeftModel) -> tuple[PreTrainedModel, PeftConfig | None]:
    """The base and the configuration of a new adapter, for TRL's trainers, which add adapters themselves.

    Of a `PeftModel` they would keep a frozen second adapter as reference, whose folder in a checkpoint would replace
    the trained adapter on resuming.
    """
    if not isinstance(model, PeftModel):
        return model, None
    peft_config = model.active_peft_config
    return (model.get_base_model() if peft_config.is_prompt_learning else model.unload()), peft_config
