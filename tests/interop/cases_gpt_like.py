"""Cases of the families that are variations of GPT."""

from . import parity


TOKENS = {"vocab_size": parity.VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GPT_SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
TWELVE_HEADS = {"hidden_size": 48, "num_attention_heads": 12}
SCALED_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}

# family -> its small base configuration, and cases: name -> native switches on top of it
# "attention": the backend of the native class, where sdpa is not one of those it has
GPT_LIKE = {
    "openai-gpt": (
        {**TOKENS, **GPT_SIZES, "attention": "eager"},
        {
            "relu": {"afn": "relu"},
            "silu": {"afn": "silu"},
            "swish": {"afn": "swish"},
            "eps": {"layer_norm_epsilon": 0.1},
            "untied": {"tie_word_embeddings": False},
            "sizes": {"n_embd": 24, "n_head": 2, "n_positions": 32},
        },
    ),
    "gpt2": (
        {**TOKENS, **GPT_SIZES},
        {
            "unscaled": {"scale_attn_weights": False},
            "by-layer": {"scale_attn_by_inverse_layer_idx": True},
            "unscaled-by-layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
            "reorder": {"reorder_and_upcast_attn": True, "attention": "eager", "layer_norm_epsilon": 0.1},
            "inner": {"n_inner": 40},
            "relu": {"activation_function": "relu"},
            "untied": {"tie_word_embeddings": False},
        },
    ),
    "gpt_neo": (
        {
            **TOKENS,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1], [["global"], 1]],
            "window_size": 4,
            "attention": "eager",
        },
        {
            "window": {"window_size": 2},
            "global": {"attention_types": [[["global"], 3]]},
            "local": {"attention_types": [[["local"], 3]]},
            "inner": {"intermediate_size": 40},
            "gelu": {"activation_function": "gelu"},
            "eps": {"layer_norm_epsilon": 0.1},
            "untied": {"tie_word_embeddings": False},
        },
    ),
    "gptj": (
        {**TOKENS, **GPT_SIZES, "rotary_dim": 4, "attention": "eager"},
        {
            "whole-head": {"rotary_dim": 8},
            "rounded-down": {"n_embd": 4 * 98, "rotary_dim": 54},  # int(98 * (54 / 98)) is 53
            "inner": {"n_inner": 40},
            "relu": {"activation_function": "relu"},
            "eps": {"layer_norm_epsilon": 0.1},
            "tied": {"tie_word_embeddings": True},
        },
    ),
    "gpt_neox": (
        {**TOKENS, **SIZES, "intermediate_size": 40, "max_position_embeddings": 64},
        {
            "sequential": {"use_parallel_residual": False},
            "no-bias": {"attention_bias": False},
            "whole-head": {"rope_parameters": {"partial_rotary_factor": 1.0}},
            "theta": {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
            "linear": {"rope_parameters": SCALED_ROPE},
            "gelu_new": {"hidden_act": "gelu_new"},
            "eps": {"layer_norm_eps": 0.1},
            "tied": {"tie_word_embeddings": True},
        },
    ),
    "opt": (
        {**TOKENS, **SIZES, "ffn_dim": 40, "max_position_embeddings": 64},
        {
            "post-norm": {"do_layer_norm_before": False},
            "no-final-norm": {"_remove_final_layer_norm": True},
            "projection": {"word_embed_proj_dim": 16},
            "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
            "wider-embedding": {"word_embed_proj_dim": 48},
            "no-bias": {"enable_bias": False},
            "no-affine": {"layer_norm_elementwise_affine": False},
            "gelu": {"activation_function": "gelu"},
            "untied": {"tie_word_embeddings": False},
            "untied-projection": {"tie_word_embeddings": False, "word_embed_proj_dim": 16},
        },
    ),
    "bloom": (
        {**TOKENS, "hidden_size": 32, "n_layer": 3, "n_head": 4, "attention": "eager"},
        {
            "residual-from-norm": {"apply_residual_connection_post_layernorm": True},
            "heads": {"n_head": 6, "hidden_size": 48},
            "eps": {"pretraining_tp": 2, "layer_norm_epsilon": 0.1},
            "untied": {"tie_word_embeddings": False},
        },
    ),
    "mpt": (
        {**TOKENS, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, "attention": "eager"},
        {
            "clip": {"attn_config": {"clip_qkv": 0.5}},
            "scale": {"attn_config": {"softmax_scale": 1.0}},
            "heads": {"n_heads": 6, "d_model": 48},
            "eps": {"layer_norm_epsilon": 0.1},
            "untied": {"tie_word_embeddings": False},
        },
    ),
    "falcon": (
        {**TOKENS, **SIZES, "max_position_embeddings": 64},
        {
            "bias": {"bias": True},
            "multi-head": {"multi_query": False},
            "sequential": {"parallel_attn": False},
            # twelve heads, for the slopes of a power of two are no fractions that bfloat16 would round
            "alibi": {"alibi": True, **TWELVE_HEADS},
            "rw": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, **TWELVE_HEADS},
            "new": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "new-bias": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
            "new-one-norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
            "new-multi-head": {"new_decoder_architecture": True},
            "inner": {"ffn_hidden_size": 40},
            "linear": {"rope_parameters": SCALED_ROPE},
            "relu": {"activation": "relu"},
            "eps": {"layer_norm_epsilon": 0.1},
            "untied": {"tie_word_embeddings": False},
        },
    ),
}
