"""The published config.json of the checkpoint that each preset names: what differs from transformers' defaults."""

from typing import Any


def _llama3(**sizes) -> tuple[str, dict[str, Any]]:
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    shared = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    return "llama", {**shared, "rope_parameters": rope, **sizes}


def _roberta(**sizes) -> tuple[str, dict[str, Any]]:
    shared = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return "roberta", {**shared, **sizes}


def _gemma3(**sizes) -> tuple[str, dict[str, Any]]:
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    shared = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256}
    window = {"sliding_window": 512, "max_position_embeddings": 32768, "rope_parameters": rope}
    return "gemma3_text", {"vocab_size": 262144, **shared, **window, **sizes}


def _t5(d_model: int, d_ff: int, layers: int, heads: int, d_kv: int = 64) -> tuple[str, dict[str, Any]]:
    return "t5", {"d_model": d_model, "d_ff": d_ff, "num_layers": layers, "num_heads": heads, "d_kv": d_kv}


def _t5_v1_1(*sizes: int) -> tuple[str, dict[str, Any]]:
    name, config = _t5(*sizes)
    return name, {**config, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def _bart(d_model: int, layers: int, heads: int) -> tuple[str, dict[str, Any]]:
    sides = ("encoder", "decoder")
    layers = {f"{side}_layers": layers for side in sides}
    heads = {f"{side}_attention_heads": heads for side in sides}
    return "bart", {"d_model": d_model, **layers, **heads, **{f"{side}_ffn_dim": 4 * d_model for side in sides}}


# preset -> (native model type, fields)
NATIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("openai-gpt", {}),
    "gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "llama-3-8b": _llama3(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32),
    "llama-3-70b": _llama3(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64),
    "llama-3.2-1b": _llama3(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": True,
        },
    ),
    "mistral-7b": (
        "mistral",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "mixtral-8x7b": (
        "mixtral",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": True,
        },
    ),
    "gemma-3-270m": _gemma3(hidden_size=640, intermediate_size=2048, num_hidden_layers=18),
    "gemma-3-1b": _gemma3(hidden_size=1152, intermediate_size=6912, num_hidden_layers=26),
    "bert-base": ("bert", {}),
    "bert-large": (
        "bert",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "roberta-base": _roberta(),
    "roberta-large": _roberta(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "distilbert": ("distilbert", {}),
    "modernbert-base": ("modernbert", {"classifier_pooling": "mean"}),
    "t5-small": _t5(512, 2048, 6, 8),
    "t5-base": _t5(768, 3072, 12, 12),
    "t5-large": _t5(1024, 4096, 24, 16),
    "t5-3b": _t5(1024, 16384, 24, 32, 128),
    "t5-11b": _t5(1024, 65536, 24, 128, 128),
    "t5-v1.1-small": _t5_v1_1(512, 1024, 8, 6),
    "t5-v1.1-base": _t5_v1_1(768, 2048, 12, 12),
    "t5-v1.1-large": _t5_v1_1(1024, 2816, 24, 16),
    "t5-v1.1-xl": _t5_v1_1(2048, 5120, 24, 32),
    "t5-v1.1-xxl": _t5_v1_1(4096, 10240, 24, 64),
    "bart-base": _bart(768, 6, 12),
    "bart-large": _bart(1024, 12, 16),
}
