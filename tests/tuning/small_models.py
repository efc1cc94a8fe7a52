"""Tiny checkpoints with tokenizers of their own, and tiny files of examples."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerBase,
    set_seed,
)

import hf_llm
from hf_llm.data import train_tokenizer


WORDS = "red green blue one two three four five cat dog bird runs sleeps sings here there now then".split()
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 128}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct sentences of two to nine words."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    while len(found) < count:
        length = int(torch.randint(2, 10, (), generator=generator))
        found[" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))] = None
    return list(found)


def small_tokenizer(stack: str) -> PreTrainedTokenizerBase:
    chat = {"chat_template": True} if stack == "decoder" else {}
    return train_tokenizer(sentences(200), "bpe", 400, stack=stack, show_progress=False, **chat)


_STACKS = {
    "decoder": (hf_llm.LLMDecoderConfig, AutoModelForCausalLM),
    "encoder": (hf_llm.LLMEncoderConfig, AutoModelForMaskedLM),
    "encoder-decoder": (hf_llm.LLMEncoderDecoderConfig, AutoModelForSeq2SeqLM),
}


def save_checkpoint(folder: Path, stack: str, **fields) -> Path:
    """A random model and its tokenizer."""
    set_seed(1)
    tokenizer = small_tokenizer(stack)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {**SIZES, "vocab_size": len(tokenizer), **ids, **fields}
    config_class, auto_class = _STACKS[stack]
    if stack == "encoder-decoder":
        start = {"decoder_start_token_id": tokenizer.pad_token_id}
        config = config_class(encoder=sizes, decoder=sizes, **start, **ids)
    else:
        config = config_class(**sizes)
    auto_class.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_config(path: Path, sections: dict, changes: dict) -> Path:
    """Sections of a configuration, with others or single keys changed, as a file."""
    merged = dict(sections)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if is_section else value
    path.write_text(json.dumps(merged))
    return path


SHORT_TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
}
