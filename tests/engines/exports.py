"""Tiny random models of the native families, written by `hf-llm export` for other engines to read."""

import copy
from pathlib import Path

import torch
from interop import parity
from interop.cases_gpt_like import GPT_LIKE
from interop.cases_llama_like import LLAMA_LIKE
from interop.test_encoder_decoders import CASES as ENCODER_DECODERS
from interop.test_encoders import CASES as ENCODERS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hf_llm_cli as cli


SMALL = {name: base for name, (base, _) in (LLAMA_LIKE | GPT_LIKE | ENCODER_DECODERS | ENCODERS).items()}


def export(family: str, folder: Path, **fields) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """A model of ours with a native family's small configuration and the given native `fields`, every parameter drawn
    at random, and its tokenizer; `folder/native` is what `hf-llm export` writes of it."""
    ours = parity.imported(parity.native_model(family, **(copy.deepcopy(SMALL[family]) | fields)))
    tokenizer = tokenizer_of(ours.config)
    for part in (ours, tokenizer):
        part.save_pretrained(folder / "ours")
    cli.main(["export", str(folder / "ours"), str(folder / "native"), "--as", family])
    return ours, tokenizer


def tokenizer_of(config) -> PreTrainedTokenizerFast:
    """A word for each id: `w7` is 7, and the special tokens are where the configuration has them."""
    size = config.get_text_config(decoder=True).vocab_size
    words = {f"w{i}": i for i in range(size)}
    roles = {"pad": config.pad_token_id, "bos": config.bos_token_id, "eos": config.eos_token_id, "unk": 3}
    roles = {role: i for role, i in roles.items() if i is not None}
    assert len(set(roles.values())) == len(roles), f"special tokens share an id: {roles}"
    words |= {f"<{role}>": i for role, i in roles.items()}
    words = {word: i for word, i in words.items() if not word.startswith("w") or i not in roles.values()}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{role}_token": f"<{role}>" for role in roles})


def prompts(length: int = 8, seed: int = 0) -> torch.LongTensor:
    """Ids (2, length) that are no special tokens."""
    return parity.inputs(length=length, low=4, seed=seed)
