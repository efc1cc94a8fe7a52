"""A language of single letters, models of a few thousand weights that write it, and rewards that can be counted."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_llm import (
    LLMDecoderConfig,
    LLMDecoderForCausalLM,
    LLMDecoderForSequenceClassification,
    LLMEncoderConfig,
    LLMEncoderDecoderConfig,
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderForMaskedLM,
)
from hf_llm.rlhf import PPOConfig, PPOTrainer


LETTERS = "abcdefghijkl"
SIZES = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def make_tokenizer(order: str = LETTERS, pad_token: str = "<pad>") -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<s>", *order])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token=pad_token)


def decoder(seed: int = 0, **fields) -> LLMDecoderForCausalLM:
    torch.manual_seed(seed)
    return LLMDecoderForCausalLM(LLMDecoderConfig(**{**SIZES, **fields}))


def encoder(seed: int = 0, **fields) -> LLMEncoderForMaskedLM:
    torch.manual_seed(seed)
    return LLMEncoderForMaskedLM(LLMEncoderConfig(**{**SIZES, **fields}))


def encoder_decoder(seed: int = 0, **fields) -> LLMEncoderDecoderForConditionalGeneration:
    torch.manual_seed(seed)
    half = {**SIZES, **fields}
    return LLMEncoderDecoderForConditionalGeneration(
        LLMEncoderDecoderConfig(
            encoder=dict(half), decoder=dict(half), pad_token_id=0, eos_token_id=1, decoder_start_token_id=2
        )
    )


def reward_model(seed: int = 1, **fields) -> LLMDecoderForSequenceClassification:
    torch.manual_seed(seed)
    return LLMDecoderForSequenceClassification(LLMDecoderConfig(**{**SIZES, "num_labels": 1, **fields}))


def prompts(count: int = 64) -> Dataset:
    """Texts of one to three letters."""
    texts = [" ".join(LETTERS[(i + j * 5) % len(LETTERS)] for j in range(1 + i % 3)) for i in range(count)]
    return Dataset.from_dict({"prompt": texts})


def share_of_a(prompts, completions, **kwargs) -> list[float]:
    """How many of a completion's letters are "a", from 0 to 1."""
    return [text.split().count("a") / max(len(text.split()), 1) for text in completions]


def settings(folder, **changes) -> PPOConfig:
    """A run of six optimizer steps: three rollouts, passed over twice."""
    plan = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return PPOConfig(**{**plan, **changes})


def trainer(folder, model=None, rewards=share_of_a, arguments: dict | None = None, **changes) -> PPOTrainer:
    """A trainer on the letters; `arguments` go to PPOTrainer, `changes` to PPOConfig."""
    given = {"train_dataset": prompts(), "processing_class": make_tokenizer(), **(arguments or {})}
    return PPOTrainer(model or decoder(), rewards, settings(folder, **changes), **given)


def logged(run: PPOTrainer, name: str) -> list[float]:
    """A figure of all log entries that have it."""
    return [entry[name] for entry in run.state.log_history if name in entry]
