"""MiniCPM3: Llama with multi-head latent attention, and factors on embeddings, branches and logits."""

import math

from ..family import Group, same
from ..parts import PRE_NORMS, inverse, layer, llama_like, one_if_unset, rope


def _factors(native) -> dict[str, float]:
    depth, width = math.sqrt(native.num_hidden_layers), native.hidden_size
    return {"residual_multiplier": native.scale_depth / depth, "logit_scale": native.dim_model_base / width}


def _scales(ours) -> dict[str, float]:
    root, factor = math.sqrt(ours.num_hidden_layers), ours.residual_multiplier
    depth = root if factor is None else inverse(lambda depth: depth / root, factor, factor * root)
    return {"scale_depth": depth, "dim_model_base": round((ours.logit_scale or 1.0) * ours.hidden_size)}


LATENT = "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim".split()
MINICPM3 = llama_like(
    "minicpm3",
    rope(),
    *same("intermediate_size", "attention_bias", "mlp_bias", *LATENT),
    one_if_unset("scale_emb", "embedding_multiplier"),
    Group(("scale_depth", "dim_model_base"), ("residual_multiplier", "logit_scale"), _factors, _scales),
    constants={"attention_type": "latent"},
    ignores=("pretraining_tp", "head_dim"),  # the latter is qk_rope_head_dim
    refuse=lambda native: native.rope_parameters.get("mscale_all_dim") and "`mscale_all_dim` scales its scores",
    weights=PRE_NORMS
    | layer("layers.{i}.self_attn", **{f"self_attn.{n}_norm": f"{n}_layernorm" for n in ("q_a", "kv_a")}),
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}},
)
