"""Checks of tokenizer, model, launch and prompts before the first rollout."""

from accelerate import Accelerator
from accelerate.utils import DistributedType, is_peft_model
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from .config import PPOConfig
from .critic import base_of, num_embeddings


def check_tokenizer(tokenizer) -> None:
    """Raise ValueError unless it is a tokenizer with an end token."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"processing_class is a {type(tokenizer).__name__}, but PPO trains on text alone: pass a tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("processing_class has no end token: set tokenizer.eos_token, which ends completions")


def check_writes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless a model is a language model with embeddings for all of the tokenizer's tokens."""
    base = base_of(model)
    if not base.can_generate() or base.get_output_embeddings() is None:
        raise ValueError(f"{type(base).__name__} is no causal or seq2seq language model, which the policy must be")
    tokens = num_embeddings(base)
    if len(tokenizer) > tokens:
        raise ValueError(
            f"the policy has embeddings for {tokens} tokens, but processing_class has {len(tokenizer)}: pass its own "
            "tokenizer, or resize its embeddings"
        )


def check_launch(model: PreTrainedModel, args: PPOConfig, accelerator: Accelerator) -> None:
    """Raise ValueError where PPO does not support the way of running, the adapter or the way of generating."""
    base = base_of(model)
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(f"distributed_type = {accelerator.distributed_type}: PPO spreads over processes by DDP alone")
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"peft_config = {type(model.active_peft_config).__name__}: its virtual tokens take no part in the "
            "positions that PPO passes; use adapters inside the layers, such as LoRA"
        )
    if base.config.is_encoder_decoder:
        for name in ("use_vllm", "use_transformers_continuous_batching"):
            if getattr(args, name):
                raise ValueError(f"{name} = True, but {type(base).__name__} is an encoder-decoder, which cannot")


def check_prompts(trainer: Trainer, name: str, dataset, batch: int) -> None:
    """Look through a dataset before training. (The prompts of a stream are checked in its rollouts, by
    `check_lengths`.)

    Args:
        trainer: PPOTrainer, or TRL's of GRPO or RLOO.
        name: of the dataset, for messages.
        batch: prompts in one rollout.

    Raises:
        ValueError: naming the first prompt that does not fit.
    """
    columns = dataset.column_names
    if columns is not None and "prompt" not in columns:
        raise ValueError(f'{name} has the columns {columns}, but none named "prompt"')
    if not isinstance(dataset, Dataset):
        return
    if len(dataset) < batch:
        raise ValueError(f"{name} has {len(dataset)} prompts, fewer than the {batch} of one rollout")
    for start in range(0, len(dataset), 1000):
        prompts = dataset[start : start + 1000]["prompt"]
        for i, prompt in enumerate(prompts, start):
            if not isinstance(prompt, str | list):
                raise ValueError(f"{name}: prompt {i} is {prompt!r}, neither a text nor a conversation")
        lengths = [len(ids) for ids in trainer._tokenize_prompts(prompts)[0]]
        check_lengths(name, lengths, base_of(trainer.model), trainer.max_completion_length, start)


def check_lengths(
    name: str, lengths: list[int], model: PreTrainedModel, max_completion_length: int, start: int = 0
) -> None:
    """Raise ValueError if prompts of these lengths leave too little of the model's context for a completion."""
    decoder_positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if model.config.is_encoder_decoder:
        room = getattr(model.get_encoder().config, "max_position_embeddings", None)
        if decoder_positions is not None and max_completion_length > decoder_positions:
            raise ValueError(
                f"max_completion_length = {max_completion_length}, but the decoder has {decoder_positions} positions"
            )
        rest = f"the encoder has {room} positions"
    else:
        room = None if decoder_positions is None else decoder_positions - max_completion_length
        rest = f"max_completion_length = {max_completion_length} leaves {room} of {decoder_positions} positions"
    for i, length in enumerate(lengths, start):
        if length == 0:
            raise ValueError(f"{name}: prompt {i} has no tokens")
        if room is not None and length > room:
            raise ValueError(f"{name}: prompt {i} has {length} tokens, but {rest}: shorten or filter prompts")
