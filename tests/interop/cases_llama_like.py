"""Cases of the families that are variations of Llama."""

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
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# family -> its small base configuration, and cases: name -> native switches on top of it
LLAMA_LIKE = {
    "llama": (
        SMALL,
        {
            "biases": {"attention_bias": True, "mlp_bias": True},
            "tied": {"tie_word_embeddings": True},
            "head_dim": {"head_dim": 16},
            "mha": {"num_key_value_heads": 4},
            "llama3": {"rope_parameters": LLAMA3_ROPE},
            "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
            "gelu": {"hidden_act": "gelu"},
        },
    ),
}
