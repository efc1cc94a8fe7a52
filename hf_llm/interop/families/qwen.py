"""Qwen 2 and 3, dense and with experts: Llama with biases on q, k, v (2) or normalised queries and keys (3)."""

from ..family import Group, renamed, same
from ..parts import DENSE, HEAD_DIM, WINDOW_BY_LAYER, WINDOW_EVERYWHERE, experts, llama_like, rope


def _windows_to_native(ours) -> dict:
    if ours.sliding_window is None:
        return {"use_sliding_window": False, "layer_types": list(ours.layer_types)}
    return {
        "use_sliding_window": True,
        "sliding_window": ours.sliding_window,
        "layer_types": list(ours.layer_types),
        "max_window_layers": ours.layer_types.index("sliding_attention"),  # for readers that know no layer_types
    }


WINDOWS = Group(
    ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    ("sliding_window", "layer_types"),
    WINDOW_BY_LAYER.to_ours,
    _windows_to_native,
)
SWITCHED_WINDOW = Group(
    ("use_sliding_window", "sliding_window"),
    ("sliding_window", "layer_types"),
    WINDOW_EVERYWHERE.to_ours,
    lambda ours: WINDOW_EVERYWHERE.to_native(ours) | {"use_sliding_window": ours.sliding_window is not None},
)


def _sparse_to_ours(native) -> dict:
    def is_sparse(i: int) -> bool:
        return i not in native.mlp_only_layers and (i + 1) % native.decoder_sparse_step == 0

    return {"mlp_layer_types": ["sparse" if is_sparse(i) else "dense" for i in range(native.num_hidden_layers)]}


def _sparse_to_native(ours) -> dict:
    dense = [i for i, kind in enumerate(ours.mlp_layer_types or ()) if kind == "dense"]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}


EXPERTS = (
    experts(),
    *same("num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size"),
    *same("output_router_logits", "router_aux_loss_coef"),
    Group(("mlp_only_layers", "decoder_sparse_step"), ("mlp_layer_types",), _sparse_to_ours, _sparse_to_native),
)
COMMON = (*DENSE, rope())

QWEN2 = llama_like(
    "qwen2",
    *COMMON,
    HEAD_DIM,
    WINDOWS,
    constants={"attention_bias": True, "attention_output_bias": False},
)
QWEN2_MOE = llama_like(
    "qwen2_moe",
    *COMMON,
    HEAD_DIM,
    WINDOWS,
    *EXPERTS,
    *renamed(attention_bias="qkv_bias"),
    *same("shared_expert_intermediate_size"),
    constants={"attention_output_bias": False, "shared_expert_gate": True},
)
QWEN3 = llama_like("qwen3", *COMMON, WINDOWS, *same("head_dim", "attention_bias"), constants={"qk_norm": "head"})
QWEN3_MOE = llama_like(
    "qwen3_moe",
    *COMMON,
    HEAD_DIM,
    *EXPERTS,
    *same("attention_bias"),
    SWITCHED_WINDOW,
    constants={"qk_norm": "head"},
)
