"""Cases of the families that are variations of Llama: family -> its small base configuration, and cases, name ->
native switches on top of it. "attention" is the backend of the native class, where that is not sdpa."""

from . import parity


SMALL = {
    "vocab_size": parity.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
THETA = {"rope_theta": 10000.0}
ORIGINAL = {"original_max_position_embeddings": 8}
LINEAR = {"rope_type": "linear", "factor": 4.0} | THETA
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0} | THETA
YARN = {"rope_type": "yarn", "factor": 4.0} | THETA | ORIGINAL
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | THETA | ORIGINAL
LONG = {"rope_type": "longrope"} | THETA | ORIGINAL
SLIDING, FULL = "sliding_attention", "full_attention"

TIED = {"tied": {"tie_word_embeddings": True}}
UNTIED = {"untied": {"tie_word_embeddings": False}}
HEAD_DIM = {"head_dim": {"head_dim": 16}}
MHA = {"mha": {"num_key_value_heads": 4}, "mqa": {"num_key_value_heads": 1}}
THETAS = {"theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}}
SCALED = THETAS | {"linear": {"rope_parameters": LINEAR}}
ACTIVATION = {"gelu": {"hidden_act": "gelu"}}
BIAS = {"attention-bias": {"attention_bias": True}}
MLP_BIAS = {"mlp-bias": {"mlp_bias": True}}
RMS_EPS = {"eps": {"rms_norm_eps": 0.1}}
LAYER_NORM_EPS = {"eps": {"layer_norm_eps": 0.1}}
WINDOW = {"window": {"sliding_window": 4}}
LIKE_LLAMA = TIED | HEAD_DIM | MHA | SCALED | ACTIVATION | RMS_EPS

LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "dim_model_base": 8,
}
QWEN_WINDOWS = {
    "windows": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "window-everywhere": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    "layer-types": {"use_sliding_window": True, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING]},
    "window-of-no-layer": {"use_sliding_window": True, "sliding_window": 4, "rms_norm_eps": 0.1},
    "window-not-used": {"sliding_window": 4, "rms_norm_eps": 0.1},
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
DENSE_LAYERS = {
    "sparse-step": {"decoder_sparse_step": 2},
    "dense-layers": {"mlp_only_layers": [0, 2]},
    "dense-and-step": {"mlp_only_layers": [3], "decoder_sparse_step": 2},
    "normalised": {"norm_topk_prob": True},
    "top-3": {"num_experts_per_tok": 3},
}
SHARED = {"shared_expert_intermediate_size": 16}
GEMMA = SMALL | {"head_dim": 8}
LATER_GEMMA = GEMMA | {"query_pre_attn_scalar": 8, "sliding_window": 4}
GEMMA_WINDOWS = {
    "all-full": {"layer_types": [FULL] * 3},
    "all-sliding": {"layer_types": [SLIDING] * 3},
    "full-first": {"layer_types": [FULL, SLIDING, FULL]},
    "narrow": {"sliding_window": 2},
}
LATER_GEMMA_SWITCHES = {
    "scalar": {"query_pre_attn_scalar": 24},
    "final-softcap": {"final_logit_softcapping": 1.5},
    "gelu": {"hidden_activation": "gelu"},
}
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 1024,
}

LLAMA_LIKE = {
    "llama": (
        SMALL,
        LIKE_LLAMA
        | BIAS
        | MLP_BIAS
        | {
            "llama3": {"rope_parameters": LLAMA3},
            "dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": 8},
            "yarn": {"rope_parameters": YARN},
            "yarn-details": {"rope_parameters": YARN | {"beta_fast": 4.0, "mscale": 0.7, "mscale_all_dim": 0.4}},
            "longrope": {"rope_parameters": LONG | {"short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 4.0]}},
            "pretraining": {"pretraining_tp": 2, "rms_norm_eps": 0.1},
        },
    ),
    "mistral": (SMALL | {"sliding_window": None}, LIKE_LLAMA | WINDOW),
    "mixtral": (
        SMALL | {"num_local_experts": 4},
        LIKE_LLAMA | WINDOW | {"top-1": {"num_experts_per_tok": 1}, "top-3": {"num_experts_per_tok": 3}},
    ),
    "granite": (
        SMALL | {"attention_multiplier": 8**-0.5},
        LIKE_LLAMA
        | BIAS
        | MLP_BIAS
        | {
            "embedding": {"embedding_multiplier": 3.0},
            "residual": {"residual_multiplier": 0.22},
            "attention": {"attention_multiplier": 0.1},
            "logits": {"logits_scaling": 13.0},
        },
    ),
    "smollm3": (
        SMALL | {"no_rope_layers": [1, 1, 1], "tie_word_embeddings": False},
        LIKE_LLAMA
        | BIAS
        | MLP_BIAS
        | {
            "nope": {"no_rope_layers": [1, 0, 1]},
            "nope-interval": {"no_rope_layers": None, "no_rope_layer_interval": 3},
            "nope-window": {"no_rope_layers": [1, 0, 0], "use_sliding_window": True, "sliding_window": 4},
            "layer-types": {
                "layer_types": [SLIDING, FULL, SLIDING],
                "use_sliding_window": True,
                "sliding_window": 4,
            },
            "window-not-used": {"sliding_window": 4, "no_rope_layers": [1, 0, 1]},
        },
    ),
    "minicpm3": (
        SMALL | LATENT,
        UNTIED
        | THETAS
        | {"linear": {"rope_parameters": LINEAR}, "yarn": {"rope_parameters": YARN}}
        | ACTIVATION
        | RMS_EPS
        | BIAS
        | MLP_BIAS
        | {
            "dense-query": {"q_lora_rank": None},
            "value": {"v_head_dim": None},
            "embedding": {"scale_emb": 3.0},
            "depth": {"scale_depth": 0.7},
            "logits": {"dim_model_base": 16},
            "longrope": {"rope_parameters": LONG | {"short_factor": [1.0] * 2, "long_factor": [1.5, 4.0]}},
        },
    ),
    "qwen2": (SMALL, LIKE_LLAMA | QWEN_WINDOWS),
    "qwen2_moe": (
        SMALL | EXPERTS | SHARED | {"num_hidden_layers": 4},
        LIKE_LLAMA
        | DENSE_LAYERS
        | {
            "no-bias": {"qkv_bias": False},
            "shared-width": {"shared_expert_intermediate_size": 24},
            "windows": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
            "layer-types": {
                "use_sliding_window": True,
                "sliding_window": 4,
                "layer_types": [FULL, SLIDING, SLIDING, FULL],
            },
        },
    ),
    "qwen3": (SMALL | {"head_dim": 8}, LIKE_LLAMA | BIAS | QWEN_WINDOWS),
    "qwen3_moe": (
        SMALL | EXPERTS | {"num_hidden_layers": 4},
        LIKE_LLAMA
        | BIAS
        | DENSE_LAYERS
        | {
            "window": {"use_sliding_window": True, "sliding_window": 4},
            "window-not-used": {"sliding_window": 4, "rms_norm_eps": 0.1},
        },
    ),
    "gemma": (GEMMA, UNTIED | HEAD_DIM | MHA | SCALED | BIAS | RMS_EPS | {"silu": {"hidden_act": "silu"}}),
    "gemma2": (
        LATER_GEMMA | {"attention": "eager", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0},
        UNTIED
        | HEAD_DIM
        | MHA
        | SCALED
        | BIAS
        | RMS_EPS
        | GEMMA_WINDOWS
        | LATER_GEMMA_SWITCHES
        | {
            "softcap": {"attn_logit_softcapping": 0.5},
            "no-softcap": {"attn_logit_softcapping": None},
            "no-final-softcap": {"final_logit_softcapping": None},
        },
    ),
    "gemma3_text": (
        LATER_GEMMA | {"sliding_window_pattern": 2},
        UNTIED
        | HEAD_DIM
        | MHA
        | BIAS
        | RMS_EPS
        | GEMMA_WINDOWS
        | LATER_GEMMA_SWITCHES
        | {
            "pattern": {"sliding_window_pattern": 3},
            "softcap-not-read": {"attn_logit_softcapping": 2.0, "rms_norm_eps": 0.1},
            "rope": {
                "layer_types": [SLIDING, FULL, SLIDING],
                "rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 100.0}, FULL: LINEAR},
            },
        },
    ),
    "olmo": (
        SMALL,
        TIED | HEAD_DIM | MHA | SCALED | ACTIVATION | BIAS | {"clip": {"clip_qkv": 0.5}},
    ),
    "olmo2": (SMALL, LIKE_LLAMA | BIAS),
    "olmoe": (
        SMALL | {"num_experts": 4, "num_experts_per_tok": 2},
        TIED
        | MHA
        | SCALED
        | ACTIVATION
        | RMS_EPS
        | BIAS
        | {
            "clip": {"clip_qkv": 0.5},
            "normalised": {"norm_topk_prob": True},
            "top-3": {"num_experts_per_tok": 3},
        },
    ),
    "phi": (
        SMALL,
        TIED
        | HEAD_DIM
        | MHA
        | LAYER_NORM_EPS
        | {
            "gelu": {"hidden_act": "gelu"},
            "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
            "linear": {"rope_parameters": LINEAR},
            "rotates-all": {"partial_rotary_factor": 1.0},
            "rotates-quarter": {"partial_rotary_factor": 0.25},
            "qk-norm": {"qk_layernorm": True},
            "qk-norm-eps": {"qk_layernorm": True, "layer_norm_eps": 0.1},
        },
    ),
    "phi3": (
        SMALL,
        TIED
        | HEAD_DIM
        | MHA
        | THETAS
        | ACTIVATION
        | RMS_EPS
        | WINDOW
        | {
            "partial": {"partial_rotary_factor": 0.75, "hidden_size": 64},
            "longrope": {
                "rope_parameters": LONG | {"short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 4.0]},
                "original_max_position_embeddings": 8,
            },
            "longrope-short": {
                "rope_parameters": LONG | {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0] * 4},
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "stablelm": (
        SMALL | {"hidden_size": 64},
        TIED
        | MHA
        | THETAS
        | ACTIVATION
        | LAYER_NORM_EPS
        | {
            "bias": {"use_qkv_bias": True},
            "parallel": {"use_parallel_residual": True},
            "qk-norm": {"qk_layernorm": True},
            "qk-norm-mha": {"qk_layernorm": True, "num_key_value_heads": 4},
            "all": {"use_qkv_bias": True, "use_parallel_residual": True, "qk_layernorm": True},
            "rotates-half": {"partial_rotary_factor": 0.5},
            "rotates-all": {"partial_rotary_factor": 1.0},
        },
    ),
    "starcoder2": (
        SMALL,
        UNTIED
        | HEAD_DIM
        | MHA
        | SCALED
        | ACTIVATION
        | WINDOW
        | {"no-bias": {"use_bias": False}, "eps": {"norm_epsilon": 0.1}},
    ),
    "cohere": (
        SMALL,
        UNTIED
        | HEAD_DIM
        | MHA
        | SCALED
        | ACTIVATION
        | BIAS
        | LAYER_NORM_EPS
        | {
            "qk-norm": {"use_qk_norm": True},
            "qk-norm-mha": {"use_qk_norm": True, "num_key_value_heads": 4},
            "logits": {"logit_scale": 2.0},
        },
    ),
    "gpt_oss": (
        SMALL
        | {"attention": "eager", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 4}
        | {"rope_parameters": GPT_OSS_ROPE, "max_position_embeddings": 4096},
        TIED
        | HEAD_DIM
        | MHA
        | RMS_EPS
        | THETAS
        | GEMMA_WINDOWS
        | {
            "no-bias": {"attention_bias": False},
            "truncate": {"rope_parameters": GPT_OSS_ROPE | {"truncate": True}},
            "top-1": {"num_experts_per_tok": 1},
            "limit": {"swiglu_limit": 0.5},
            "alpha": {"swiglu_alpha": 0.5},
            "activation-not-read": {"hidden_act": "gelu", "rms_norm_eps": 0.1},
        },
    ),
}
