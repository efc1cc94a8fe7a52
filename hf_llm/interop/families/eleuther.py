"""EleutherAI's decoders: GPT-Neo, GPT-J, GPT-NeoX (and Pythia)."""

import math

from ..family import Family, Field, Group, Rule, renamed, same
from ..ops import fused_by_group
from ..parts import rope
from .gpt import HEADS, NORMS


CONSTANTS = {"norm_type": "layernorm", "norm_bias": True, "feed_forward": "plain", "mlp_bias": True}
EMBEDDINGS = {"embed_tokens": "wte", "norm": "ln_f"}


# ---- GPT-Neo: global and local attention in turn, scores that are not scaled, a bias on the output alone ----------


def _neo_layers(native) -> dict:
    names = {"global": "full_attention", "local": "sliding_attention"}
    layer_types = [names[kind] for kind in native.attention_layers]
    return {
        "layer_types": layer_types,
        "sliding_window": native.window_size if "sliding_attention" in layer_types else None,
    }


def _neo_attention_types(ours) -> dict:
    names = {"full_attention": "global", "sliding_attention": "local"}
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
    constants={
        **CONSTANTS,
        "position_embedding": "learned",
        "attention_scale": 1.0,
        "attention_output_bias": True,
    },
    weights={
        **EMBEDDINGS,
        **NORMS,
        "embed_positions": "wpe",
        "layers.{i}.self_attn.o_proj": "h.{i}.attn.attention.out_proj",
        "layers.{i}.self_attn": "h.{i}.attn.attention",
        "layers.{i}.mlp.up_proj": "h.{i}.mlp.c_fc",
        "layers.{i}.mlp.down_proj": "h.{i}.mlp.c_proj",
    },
    heads=HEADS,
)


# ---- GPT-J: parallel branches behind one norm, interleaved RoPE on a part of each head, a bias on the head ---------


def _partial_rotation(native) -> dict:
    head_dim = native.n_embd // native.n_head
    factor = native.rotary_dim / head_dim
    if int(head_dim * factor) < native.rotary_dim:  # rounded down
        factor = math.nextafter(factor, 1.0)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}}


def _rotary_dim(ours) -> dict:
    return {"rotary_dim": next(iter(ours.rotary_dim.values()), 2)}


GPTJ = Family(
    name="gptj",
    stack="decoder",
    fields=(
        *same("vocab_size", "tie_word_embeddings", "initializer_range", "use_cache"),
        *renamed(
            hidden_size="n_embd",
            num_hidden_layers="n_layer",
            num_attention_heads="n_head",
            intermediate_size="n_inner",
            max_position_embeddings="n_positions",
            norm_eps="layer_norm_epsilon",
            hidden_act="activation_function",
            residual_dropout="resid_pdrop",
            embedding_dropout="embd_pdrop",
            attention_dropout="attn_pdrop",
        ),
        Group(("rotary_dim",), ("rope_parameters",), _partial_rotation, _rotary_dim),
    ),
    constants={**CONSTANTS, "norm_placement": "parallel", "rope_interleaved": True, "lm_head_bias": True},
    refuse=lambda native: None if native.rotary_dim else f"`rotary_dim={native.rotary_dim}`: it rotates no dimension",
    weights={
        **EMBEDDINGS,
        "layers.{i}.self_attn_norm": "h.{i}.ln_1",
        "layers.{i}.self_attn.o_proj": "h.{i}.attn.out_proj",
        "layers.{i}.self_attn": "h.{i}.attn",
        "layers.{i}.mlp.up_proj": "h.{i}.mlp.fc_in",
        "layers.{i}.mlp.down_proj": "h.{i}.mlp.fc_out",
    },
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}, "ForQuestionAnswering": {"score": "qa_outputs"}},
)


# ---- GPT-NeoX: parallel branches with a norm each, RoPE on a part of each head, fused projections -----------------

MEGATRON_FEED_FORWARD = {"up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"}

GPT_NEOX = Family(
    name="gpt_neox",
    stack="decoder",
    fields=(
        *same("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *same("max_position_embeddings", "hidden_act", "attention_bias", "tie_word_embeddings"),
        *same("attention_dropout", "classifier_dropout", "initializer_range", "use_cache"),
        *renamed(norm_eps="layer_norm_eps"),
        Field("hidden_dropout", ("residual_dropout", "embedding_dropout")),
        rope(partial=True),
        Group(
            ("use_parallel_residual",),
            ("norm_placement", "parallel_norms"),
            lambda native: (
                {"norm_placement": "parallel", "parallel_norms": 2}
                if native.use_parallel_residual
                else {"norm_placement": "pre"}
            ),
            lambda ours: {"use_parallel_residual": ours.norm_placement == "parallel"},
        ),
    ),
    constants=CONSTANTS,
    ignores=("is_decoder",),
    weights={
        "embed_tokens": "embed_in",
        "norm": "final_layer_norm",
        "layers.{i}.self_attn_norm": "layers.{i}.input_layernorm",
        "layers.{i}.mlp_norm": "layers.{i}.post_attention_layernorm",
        "layers.{i}.self_attn.o_proj": "layers.{i}.attention.dense",
        **{f"layers.{{i}}.mlp.{ours}": f"layers.{{i}}.mlp.{name}" for ours, name in MEGATRON_FEED_FORWARD.items()},
    },
    rules=(
        Rule(
            ("layers.{i}.self_attn.q_proj", "layers.{i}.self_attn.k_proj", "layers.{i}.self_attn.v_proj"),
            ("layers.{i}.attention.query_key_value",),
            fused_by_group,
        ),
    ),
    heads=HEADS,
)
FAMILIES = (GPT_NEO, GPTJ, GPT_NEOX)
