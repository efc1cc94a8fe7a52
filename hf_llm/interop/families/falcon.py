"""Falcon: two generations of one architecture, told apart by flags.

branches          norms                       key-value heads     models
pre               one before each branch      all, or one         falcon-rw
parallel, 1 norm  shared                      all, or one         falcon-7b
new, 1 norm       shared                      any                 falcon-11b
new, 2 norms      one for each branch         any                 falcon-40b, falcon-180b
"""

from ..family import Family, Field, Group, renamed, same
from ..ops import fused_by_group
from ..parts import GPT_HEADS, LAYER_NORM, MEGATRON_MLP, SIZES, layer, qkv, rope


ROPE = rope()


def _num_norms(native) -> int:
    """Norms before the two parallel branches."""
    return native.num_ln_in_parallel_attn or (2 if native.new_decoder_architecture else 1)


def _layers(native) -> dict:
    heads = native.num_kv_heads if native.new_decoder_architecture else 1 if native.multi_query else None
    values = {"num_key_value_heads": native.num_attention_heads if heads is None else heads, "norm_placement": "pre"}
    return values | (
        {"norm_placement": "parallel", "parallel_norms": _num_norms(native)} if native.parallel_attn else {}
    )


def _native_layers(ours) -> dict:
    parallel = ours.norm_placement == "parallel"
    new = parallel and (ours.parallel_norms == 2 or ours.num_key_value_heads not in (1, ours.num_attention_heads))
    return {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": ours.parallel_norms if new else None,
        "num_kv_heads": ours.num_key_value_heads,
        "multi_query": ours.num_key_value_heads == 1,
        "parallel_attn": parallel,
    }


def _positions(native) -> dict:
    if native.alibi:
        scale = native.head_dim**-0.5
        return {"position_embedding": "alibi", "alibi_scale": scale, "alibi_dtype": "bfloat16"}
    return ROPE.to_ours(native)


def _native_positions(ours) -> dict:
    alibi = ours.position_embedding == "alibi"
    return {"alibi": alibi} | ({} if alibi else ROPE.to_native(ours))


def _unsupported(native) -> str | None:
    new, parallel, norms = native.new_decoder_architecture, native.parallel_attn, _num_norms(native)
    if (new and not parallel) or (not new and parallel and norms == 2):
        return (
            f"`new_decoder_architecture={new}` with `parallel_attn={parallel}` and "
            f"`num_ln_in_parallel_attn={norms}` is a combination that the native class cannot run either"
        )
    return None


def _weights(config) -> dict[str, str]:
    two = config.norm_placement == "parallel" and config.parallel_norms == 2
    first, second = ("ln_attn", "ln_mlp") if two else ("input_layernorm", "post_attention_layernorm")
    return {
        "embed_tokens": "word_embeddings",
        "norm": "ln_f",
        **layer("h.{i}", self_attn_norm=first, mlp_norm=second, o_proj="self_attention.dense", **MEGATRON_MLP),
    }


FALCON = Family(
    name="falcon",
    stack="decoder",
    fields=(
        *SIZES,
        *same("max_position_embeddings", "attention_dropout", "initializer_range", "use_cache"),
        *renamed(intermediate_size="ffn_hidden_size", norm_eps="layer_norm_epsilon"),
        *renamed(hidden_act="activation", residual_dropout="hidden_dropout"),
        Field("bias", ("attention_bias", "attention_output_bias", "mlp_bias")),
        Group(
            ("new_decoder_architecture", "num_ln_in_parallel_attn", "num_kv_heads", "multi_query", "parallel_attn"),
            ("num_key_value_heads", "norm_placement", "parallel_norms"),
            _layers,
            _native_layers,
        ),
        Group(
            ("alibi", "rope_parameters"),
            ("position_embedding", "rope_parameters", "alibi_scale", "alibi_dtype"),
            _positions,
            _native_positions,
        ),
    ),
    constants=LAYER_NORM | {"feed_forward": "plain"},
    refuse=_unsupported,
    weights=_weights,
    rules=(qkv("h.{i}.self_attention.query_key_value", fused_by_group),),
    heads=GPT_HEADS,
)
