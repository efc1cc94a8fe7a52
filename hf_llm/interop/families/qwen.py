"""Qwen 2 and 3, dense and with experts: Llama with biases on q, k, v (2) or normalised queries and keys (3)."""

from typing import Any

from ..family import Family, Group, renamed, same
from ..parts import HEAD_DIM, HEADS_WITH_QA, PRE_NORMS, RMS_EPS, SIZES, TRAINING, WINDOW_EVERYWHERE, experts, rope


COMMON = (*SIZES, *RMS_EPS, *TRAINING, *same("intermediate_size"), rope())


def _windows_to_ours(native) -> dict[str, Any]:
    slides = "sliding_attention" in native.layer_types
    return {"layer_types": list(native.layer_types), "sliding_window": native.sliding_window if slides else None}


def _windows_to_native(ours) -> dict[str, Any]:
    if ours.sliding_window is None:
        return {"use_sliding_window": False, "layer_types": list(ours.layer_types)}
    return {
        "use_sliding_window": True,
        "sliding_window": ours.sliding_window,
        "layer_types": list(ours.layer_types),
        "max_window_layers": ours.layer_types.index("sliding_attention"),  # for readers that know no layer_types
    }


WINDOWS = Group(
    native=("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    ours=("sliding_window", "layer_types"),
    to_ours=_windows_to_ours,
    to_native=_windows_to_native,
)


def _sparse_to_ours(native) -> dict[str, Any]:
    def is_sparse(i: int) -> bool:
        return i not in native.mlp_only_layers and (i + 1) % native.decoder_sparse_step == 0

    return {"mlp_layer_types": ["sparse" if is_sparse(i) else "dense" for i in range(native.num_hidden_layers)]}


def _sparse_to_native(ours) -> dict[str, Any]:
    dense = [i for i, kind in enumerate(ours.mlp_layer_types or ()) if kind == "dense"]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}


EXPERTS = (
    experts(),
    *same("num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size"),
    *same("output_router_logits", "router_aux_loss_coef"),
    Group(("mlp_only_layers", "decoder_sparse_step"), ("mlp_layer_types",), _sparse_to_ours, _sparse_to_native),
)

QWEN2 = Family(
    name="qwen2",
    stack="decoder",
    fields=(*COMMON, HEAD_DIM, WINDOWS),
    constants={"attention_bias": True, "attention_output_bias": False},
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)
QWEN2_MOE = Family(
    name="qwen2_moe",
    stack="decoder",
    fields=(
        *COMMON,
        HEAD_DIM,
        WINDOWS,
        *EXPERTS,
        *renamed(attention_bias="qkv_bias"),
        *same("shared_expert_intermediate_size"),
    ),
    constants={"attention_output_bias": False, "shared_expert_gate": True},
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)
QWEN3 = Family(
    name="qwen3",
    stack="decoder",
    fields=(*COMMON, WINDOWS, *same("head_dim", "attention_bias")),
    constants={"qk_norm": "head"},
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)


def _window_to_native(ours) -> dict[str, Any]:
    return WINDOW_EVERYWHERE.to_native(ours) | {"use_sliding_window": ours.sliding_window is not None}


QWEN3_MOE = Family(
    name="qwen3_moe",
    stack="decoder",
    fields=(
        *COMMON,
        HEAD_DIM,
        *EXPERTS,
        *same("attention_bias"),
        Group(
            native=("use_sliding_window", "sliding_window"),
            ours=("sliding_window", "layer_types"),
            to_ours=WINDOW_EVERYWHERE.to_ours,
            to_native=_window_to_native,
        ),
    ),
    constants={"qk_norm": "head"},
    weights=PRE_NORMS,
    heads=HEADS_WITH_QA,
)
FAMILIES = (QWEN3, QWEN2, QWEN3_MOE, QWEN2_MOE)
