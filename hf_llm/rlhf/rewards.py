"""Rewards as TRL calls them: models that score texts exactly as they were trained to, and checked functions."""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_llm.data.checkpoints import checkpoint_path
from hf_llm.training.settings import opening

from .critic import num_embeddings
from .trl_internals import get_callable_name, is_async_callable, pad, tokenize_like_reward_trainer


Reward = str | PreTrainedModel | Callable[..., list[float | None]]
Tokenizers = PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None

# keywords of every reward function, beside the columns of the data set
CALLED_WITH = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def scored_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list | None,
    answer: str | list,
    append_eos: bool = True,
    chat_template_kwargs: dict | None = None,
) -> list[int]:
    """Token ids of what a reward model reads, as TRL's RewardTrainer makes them: prompt and answer as one text or
    conversation, plain text with the end token behind it (`append_eos`) where the tokenizer has one."""
    text = answer if prompt is None else prompt + answer
    if isinstance(text, str) and append_eos and tokenizer.eos_token and not text.endswith(tokenizer.eos_token):
        text += tokenizer.eos_token
    return tokenize_like_reward_trainer(tokenizer, text, **(chat_template_kwargs or {}))["input_ids"]


class RewardModel:
    """A sequence-classification model with one label, called as TRL calls reward functions.

    Args:
        batch_size: texts per forward pass. They are sorted by length, to save padding.
        append_eos, chat_template_kwargs: of `scored_ids`.

    Raises:
        ValueError: the model has several labels, or fewer tokens than its tokenizer, or nothing can pad its batches.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        append_eos: bool = True,
        chat_template_kwargs: dict | None = None,
    ):
        self.__name__ = (model.config._name_or_path or type(model).__name__).rstrip("/").split("/")[-1]
        if model.config.num_labels != 1:
            raise ValueError(
                f"reward model {self.__name__} has {model.config.num_labels} labels: a reward is one number. Train it "
                "with num_labels=1, or wrap it in a reward function that says which label counts"
            )
        tokens = num_embeddings(model)
        if len(tokenizer) > tokens:
            raise ValueError(
                f"reward model {self.__name__} has embeddings for {tokens} tokens, but its tokenizer has "
                f"{len(tokenizer)}: pass its own in reward_processing_classes"
            )
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.append_eos, self.chat_template_kwargs = append_eos, chat_template_kwargs
        # native models find the last token by the pad token: the one that they were trained with stays
        text_config = model.config.get_text_config()
        ids = (text_config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
        self.pad_token_id = next((i for i in ids if i is not None), None)
        if self.pad_token_id is None:
            raise ValueError(f"the tokenizer of reward model {self.__name__} has neither a pad nor an end token")
        text_config.pad_token_id = self.pad_token_id
        self.max_length = getattr(text_config, "max_position_embeddings", None)

    def tokenize(self, prompt: str | list, completion: str | list) -> list[int]:
        """Token ids of one text or conversation."""
        return scored_ids(self.tokenizer, prompt, completion, self.append_eos, self.chat_template_kwargs)

    def __call__(self, prompts: list, completions: list, **kwargs) -> list[float]:
        """One score per completion. Raises ValueError as `score` does."""
        return self.score([self.tokenize(p, c) for p, c in zip(prompts, completions, strict=True)])

    @torch.inference_mode()
    def score(self, ids: list[list[int]]) -> list[float]:
        """One score per text, given its token ids.

        Raises:
            ValueError: a text is longer than the model's positions, or its score is not finite.
        """
        texts = [torch.tensor(text) for text in ids]
        longest = max(len(text) for text in texts)
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(
                f"a text has {longest} tokens for reward model {self.__name__}, which has {self.max_length} "
                "positions: shorten prompts or max_completion_length"
            )
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores = torch.zeros(len(texts))
        for start in range(0, len(texts), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = [texts[i] for i in chosen]
            logits = self.model(
                input_ids=pad(batch, padding_value=self.pad_token_id).to(self.model.device),
                attention_mask=pad([torch.ones_like(t) for t in batch], padding_value=0).to(self.model.device),
            ).logits
            scores[chosen] = logits[:, 0].float().cpu()
        if not scores.isfinite().all():
            first = scores.isfinite().logical_not().nonzero()[0].item()
            raise ValueError(f"reward model {self.__name__} gave {scores[first]:g} for completion {first}")
        return scores.tolist()


# ---- opening --------------------------------------------------------------------------------------------------------


def open_reward_model(path: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A reward model in float32; of an adapter, its base with the adapter merged into it.

    Args:
        path: folder or Hub id, or a name of `hf_llm.data.checkpoints.CHECKPOINTS`.

    Raises:
        ValueError: there is none, or it has no trained head, or one for several labels.
    """
    path = checkpoint_path(path)
    options = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    try:
        with opening("rewards.model", path):
            if Path(path, "adapter_config.json").is_file():
                from peft import AutoPeftModelForSequenceClassification

                from hf_llm.surgery.adapters import merge

                merged = merge(AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1, **options))
                merged.config._name_or_path = path  # else its name is its base's
                return merged
            model, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True, **options)
    except RuntimeError as error:  # weights of another shape
        raise ValueError(
            f"reward model {path!r}: the adapter or its base is not of a model with one label, and a reward is one "
            "number"
        ) from error
    if info["missing_keys"]:
        raise ValueError(f"{path} is no trained reward model, its checkpoint lacks {sorted(info['missing_keys'])}")
    return model


def open_reward_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a reward model. Raises ValueError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(checkpoint_path(path), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ValueError(
            f"no tokenizer for reward model {path} ({error}): name one as tokenizer of the entry of rewards, or pass "
            "it in reward_processing_classes"
        ) from error


def resolve_rewards(rewards: Reward | Sequence[Reward], tokenizers: Tokenizers, args) -> list[Callable]:
    """Open paths, make models [`RewardModel`]s, and wrap functions in checks.

    Args:
        tokenizers: one per reward; None for functions, and for models whose folder has theirs.
        args: a [`PPOConfig`], or arguments of another trainer of TRL.

    Raises:
        ValueError: not one tokenizer per reward, or a reward that cannot be opened or called.
    """
    rewards = list(rewards) if isinstance(rewards, list | tuple) else [rewards]
    given = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers] * len(rewards)
    if len(given) != len(rewards):
        raise ValueError(
            f"reward_processing_classes has {len(given)} entries for {len(rewards)} reward_funcs: give one each (None "
            "for functions)"
        )
    return [_resolved(reward, tokenizer, args) for reward, tokenizer in zip(rewards, given)]


def _resolved(reward: Reward, tokenizer: PreTrainedTokenizerBase | None, args) -> Callable:
    trust = getattr(args, "trust_remote_code", False)
    if isinstance(reward, str):
        reward = open_reward_model(reward, trust)
    if isinstance(reward, torch.nn.Module):
        return RewardModel(
            reward.to(args.device),
            tokenizer or open_reward_tokenizer(reward.config._name_or_path, trust),
            getattr(args, "reward_batch_size", None) or args.per_device_train_batch_size,
            getattr(args, "reward_append_eos", True),
            getattr(args, "chat_template_kwargs", None),
        )
    if not callable(reward):
        raise ValueError(f"reward_funcs: {reward!r} is neither a model, nor a path, nor a function")
    return reward if isinstance(reward, RewardModel) else checked(reward)


def checked(func: Callable) -> Callable:
    """The same function, sync or async, that raises ValueError on a reward that is neither a finite number nor None
    (another reward decides). That there is one reward per completion, TRL checks.

    Raises:
        ValueError: at once, if the function cannot be called with the keywords of `CALLED_WITH`.
    """
    name = get_callable_name(func)
    try:
        inspect.signature(func).bind_partial(**dict.fromkeys(CALLED_WITH))
    except TypeError as error:
        raise ValueError(
            f"reward function {name} {error}: it is called with the keywords {', '.join(CALLED_WITH)} and all columns "
            "of the data set, so let it take **kwargs"
        ) from error

    def check(rewards):
        if rewards is None:
            raise ValueError(f"reward function {name} returned None instead of a list of numbers")
        for i, reward in enumerate(rewards):
            try:
                finite = reward is None or math.isfinite(reward)
            except TypeError:
                finite = False
            if not finite:
                raise ValueError(f"reward function {name} returned {reward!r} for completion {i}, no finite number")
        return rewards

    if is_async_callable(func):

        async def reward_function(**kwargs):
            return check(await func(**kwargs))
    else:

        def reward_function(**kwargs):
            return check(func(**kwargs))

    reward_function.__name__ = name
    return reward_function
