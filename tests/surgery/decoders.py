"""Tiny decoders to start from, ours and native ones, every parameter redrawn."""

import torch
import transformers
from models.tiny import SIZES, redraw

from hf_llm import LLMDecoderConfig, LLMDecoderForCausalLM


NATIVE_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**NATIVE_SIZES, "num_key_value_heads": 2}
NATIVE = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, tie_word_embeddings=False)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GROUPED, head_dim=16)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**GROUPED, head_dim=8, layer_types=["full_attention"] * 2)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
        )
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**NATIVE_SIZES)),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=64,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            dropout=0.0,
        )
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**GROUPED, num_local_experts=4)),
    "olmo2": lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**GROUPED)),
}


def native(family: str) -> transformers.PreTrainedModel:
    """A tiny native decoder."""
    return redraw(NATIVE[family]()).eval()


def decoder(**fields) -> LLMDecoderForCausalLM:
    """A tiny decoder of ours."""
    return redraw(LLMDecoderForCausalLM(LLMDecoderConfig(**{**SIZES, **fields}))).eval()


def hidden_states(model, *args, **kwargs) -> torch.Tensor:
    """The last hidden states of a body, without gradients."""
    with torch.no_grad():
        return model(*args, **kwargs).last_hidden_state
