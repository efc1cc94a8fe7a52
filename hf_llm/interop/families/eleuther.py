"""EleutherAI's decoders: GPT-Neo, GPT-J, GPT-NeoX (and Pythia)."""

import math

from ..family import Family, Field, Group, renamed, same
from ..ops import fused_by_group
from ..parts import (
    DENSE,
    GPT_HEADS,
    LAYER_NORM,
    LEARNED,
    MEGATRON_MLP,
    N_DROPOUTS,
    N_SIZES,
    PLAIN,
    QA,
    SIZES,
    layer,
    qkv,
    rope,
    switch,
)


CONSTANTS = LAYER_NORM | PLAIN
EMBEDDINGS = {"embed_tokens": "wte", "norm": "ln_f"}


# ---- GPT-Neo: global and local attention in turn, scores that are not scaled, a bias on the output alone ----------

KINDS = {"global": "full_attention", "local": "sliding_attention"}


def _neo_layers(native) -> dict:
    layer_types = [KINDS[kind] for kind in native.attention_layers]
    window = native.window_size if "sliding_attention" in layer_types else None
    return {"layer_types": layer_types, "sliding_window": window}


def _neo_attention_types(ours) -> dict:
    names = {ours: native for native, ours in KINDS.items()}
    window = {} if ours.sliding_window is None else {"window_size": ours.sliding_window}
    return {"attention_types": [[[names[kind] for kind in ours.layer_types], 1]], **window}


GPT_NEO = Family(
    name="gpt_neo",
    stack="decoder",
    fields=(
        *same("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "tie_word_embeddings"),
        *same("attention_dropout", "classifier_dropout", "initializer_range", "use_cache"),
        *renamed(
            num_hidden_layers="num_layers",
            num_attention_heads="num_heads",
            norm_eps="layer_norm_epsilon",
            hidden_act="activation_function",
            residual_dropout="resid_dropout",
            embedding_dropout="embed_dropout",
        ),
        Group(
            ("attention_types", "window_size"), ("layer_types", "sliding_window"), _neo_layers, _neo_attention_types
        ),
    ),
    constants=CONSTANTS | LEARNED | {"attention_scale": 1.0, "attention_output_bias": True},
    weights={
        **EMBEDDINGS,
        "embed_positions": "wpe",
        **layer("h.{i}", self_attn_norm="ln_1", o_proj="attn.attention.out_proj", self_attn="attn.attention"),
        **layer("h.{i}", mlp_norm="ln_2", up_proj="mlp.c_fc", down_proj="mlp.c_proj"),
    },
    heads=GPT_HEADS,
)


# ---- GPT-J: parallel branches behind one norm, interleaved RoPE on a part of each head, a bias on the head ---------


def _partial_rotation(native) -> dict:
    head_dim = native.n_embd // native.n_head
    factor = native.rotary_dim / head_dim
    if int(head_dim * factor) < native.rotary_dim:  # rounded down
        factor = math.nextafter(factor, 1.0)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}}


GPTJ = Family(
    name="gptj",
    stack="decoder",
    fields=(
        *same("vocab_size", "tie_word_embeddings", "initializer_range", "use_cache"),
        *renamed(intermediate_size="n_inner", max_position_embeddings="n_positions"),
        *renamed(norm_eps="layer_norm_epsilon", hidden_act="activation_function"),
        *N_SIZES,
        *N_DROPOUTS,
        Group(
            ("rotary_dim",),
            ("rope_parameters",),
            _partial_rotation,
            lambda ours: {"rotary_dim": next(iter(ours.rotary_dim.values()), 2)},
        ),
    ),
    constants=CONSTANTS | {"norm_placement": "parallel", "rope_interleaved": True, "lm_head_bias": True},
    refuse=lambda native: None if native.rotary_dim else f"`rotary_dim={native.rotary_dim}`: it rotates no dimension",
    weights={
        **EMBEDDINGS,
        **layer("h.{i}", self_attn_norm="ln_1", o_proj="attn.out_proj", self_attn="attn"),
        **layer("h.{i}.mlp", up_proj="fc_in", down_proj="fc_out"),
    },
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}, **QA},
)


# ---- GPT-NeoX: parallel branches with a norm each, RoPE on a part of each head, fused projections -----------------

GPT_NEOX = Family(
    name="gpt_neox",
    stack="decoder",
    fields=(
        *SIZES,
        *DENSE,
        *same("max_position_embeddings", "hidden_act", "attention_bias"),
        *same("attention_dropout", "classifier_dropout", "initializer_range", "use_cache"),
        *renamed(norm_eps="layer_norm_eps"),
        Field("hidden_dropout", ("residual_dropout", "embedding_dropout")),
        rope(partial=True),
        switch("use_parallel_residual", "norm_placement", "parallel", "pre"),
    ),
    constants=CONSTANTS | {"parallel_norms": 2},
    ignores=("is_decoder",),
    weights={
        "embed_tokens": "embed_in",
        "norm": "final_layer_norm",
        **layer("layers.{i}", self_attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        **layer("layers.{i}", o_proj="attention.dense", **MEGATRON_MLP),
    },
    rules=(qkv("layers.{i}.attention.query_key_value", fused_by_group),),
    heads=GPT_HEADS,
)
