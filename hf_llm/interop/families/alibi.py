"""BLOOM and MPT: ALiBi, plain feed-forward of four times the width, fused projections."""

from ..family import Family, Group, renamed, same
from ..ops import fused, fused_by_group
from ..parts import GPT_HEADS, LAYER_NORM, MEGATRON_MLP, PLAIN, layer, qkv


# BLOOM has no limit on the length; its checkpoints note the length they were trained with beside the declared fields.
BLOOM_LENGTH = Group(
    ("seq_length",),
    ("max_position_embeddings",),
    lambda native: {"max_position_embeddings": getattr(native, "seq_length", 2048)},
    lambda ours: {"seq_length": ours.max_position_embeddings},
)


def _unsupported_bloom(native) -> str | None:
    if native.slow_but_exact and native.pretraining_tp > 1:
        return (
            f"`slow_but_exact=True` with `pretraining_tp={native.pretraining_tp}`: the native class then leaves out "
            "the biases of two projections; set it to False"
        )
    return None


BLOOM = Family(
    name="bloom",
    stack="decoder",
    fields=(
        *same("vocab_size", "hidden_size", "tie_word_embeddings"),
        *same("attention_dropout", "initializer_range", "use_cache"),
        *renamed(
            num_hidden_layers="n_layer",
            num_attention_heads="n_head",
            norm_eps="layer_norm_epsilon",
            residual_from_norm="apply_residual_connection_post_layernorm",
            residual_dropout="hidden_dropout",
        ),
        BLOOM_LENGTH,
    ),
    constants=LAYER_NORM
    | PLAIN
    | {"embedding_norm": True, "position_embedding": "alibi", "attention_bias": True, "hidden_act": "gelu_fast"},
    ignores=("pretraining_tp", "slow_but_exact"),
    refuse=_unsupported_bloom,
    weights={
        "embed_tokens": "word_embeddings",
        "embed_norm": "word_embeddings_layernorm",
        "norm": "ln_f",
        **layer("h.{i}", self_attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        **layer("h.{i}", o_proj="self_attention.dense", **MEGATRON_MLP),
    },
    rules=(qkv("h.{i}.self_attention.query_key_value", fused_by_group),),
    heads=GPT_HEADS,
)


# Options of MPT's original code that transformers' class reads but does not follow. Other values than these meant
# another model there.
MPT_OPTIONS = {
    "no_bias": (True,),
    "logit_scale": (None,),
    "expansion_ratio": (4,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}
MPT_ATTENTION_OPTIONS = {
    "attn_type": ("multihead_attention",),
    "alibi": (True,),
    "alibi_bias_max": (8,),
    "prefix_lm": (False,),
    "qk_ln": (False,),
}


def _unsupported_mpt(native) -> str | None:
    for options, config in ((MPT_OPTIONS, native), (MPT_ATTENTION_OPTIONS, native.attn_config)):
        for name, legal in options.items():
            if getattr(config, name) not in legal:
                return f"`{name}={getattr(config, name)!r}`: only {legal[0]!r} is supported"
    return None


def _mpt_attention(native) -> dict:
    attention = native.attn_config
    return {"clip_qkv": attention.clip_qkv or None, "attention_scale": attention.softmax_scale}


MPT = Family(
    name="mpt",
    stack="decoder",
    fields=(
        *same("vocab_size", "tie_word_embeddings", "initializer_range", "use_cache"),
        *renamed(
            hidden_size="d_model",
            num_hidden_layers="n_layers",
            num_attention_heads="n_heads",
            max_position_embeddings="max_seq_len",
            norm_eps="layer_norm_epsilon",
            residual_dropout="resid_pdrop",
            embedding_dropout="emb_pdrop",
        ),
        Group(
            ("attn_config",),
            ("clip_qkv", "attention_scale"),
            _mpt_attention,
            lambda ours: {"attn_config": {"clip_qkv": ours.clip_qkv, "softmax_scale": ours.attention_scale}},
        ),
    ),
    constants={
        "norm_type": "layernorm",
        "position_embedding": "alibi",
        "feed_forward": "plain",
        "hidden_act": "gelu",
    },
    ignores=("learned_pos_emb", "init_device", "embedding_fraction", *MPT_OPTIONS),
    refuse=_unsupported_mpt,
    weights={
        "embed_tokens": "wte",
        "norm": "norm_f",
        **layer("blocks.{i}", self_attn_norm="norm_1", mlp_norm="norm_2", o_proj="attn.out_proj", mlp="ffn"),
    },
    rules=(qkv("blocks.{i}.attn.Wqkv", fused),),
    heads=GPT_HEADS,
)
