"""Meta's OPT (and Galactica): positions counted over real tokens, optional factorised embeddings."""

from ..family import Family, Field, Group, renamed, same


def _norms(native) -> dict:
    if native.do_layer_norm_before:
        return {"norm_placement": "pre", "final_norm": not native._remove_final_layer_norm}
    return {"norm_placement": "post", "final_norm": False}


def _native_norms(ours) -> dict:
    before = ours.norm_placement == "pre"
    return {"do_layer_norm_before": before, "_remove_final_layer_norm": before and not ours.final_norm}


def _embeddings(native) -> dict:
    if native.word_embed_proj_dim == native.hidden_size:
        return {}
    return {"embedding_size": native.word_embed_proj_dim, "embedding_projection": "tokens"}


NORM_TYPES = {True: "layernorm", False: "layernorm_non_affine"}

OPT = Family(
    name="opt",
    stack="decoder",
    fields=(
        *same("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        *same("tie_word_embeddings", "attention_dropout", "use_cache"),
        *renamed(
            intermediate_size="ffn_dim",
            hidden_act="activation_function",
            residual_dropout="dropout",
            initializer_range="init_std",
        ),
        Field("enable_bias", ("attention_bias", "attention_output_bias", "mlp_bias")),
        Field(
            "layer_norm_elementwise_affine",
            ("norm_type",),
            NORM_TYPES.__getitem__,
            lambda norm_type: norm_type == "layernorm",
        ),
        Group(
            ("do_layer_norm_before", "_remove_final_layer_norm"),
            ("norm_placement", "final_norm"),
            _norms,
            _native_norms,
        ),
        Group(
            ("word_embed_proj_dim",),
            ("embedding_size", "embedding_projection"),
            _embeddings,
            lambda ours: {"word_embed_proj_dim": ours.embedding_size},
        ),
    ),
    constants={
        "norm_eps": 1e-5,
        "norm_bias": True,
        "position_embedding": "learned",
        "position_offset": 2,
        "position_ids_source": "attention_mask",
        "feed_forward": "plain",
    },
    ignores=("layerdrop",),
    weights={
        "embed_tokens": "decoder.embed_tokens",
        "embed_positions": "decoder.embed_positions",
        "embed_projection": "decoder.project_in",
        "output_projection": "decoder.project_out",
        "norm": "decoder.final_layer_norm",
        "layers.{i}.self_attn_norm": "decoder.layers.{i}.self_attn_layer_norm",
        "layers.{i}.mlp_norm": "decoder.layers.{i}.final_layer_norm",
        "layers.{i}.self_attn.o_proj": "decoder.layers.{i}.self_attn.out_proj",
        "layers.{i}.mlp.up_proj": "decoder.layers.{i}.fc1",
        "layers.{i}.mlp.down_proj": "decoder.layers.{i}.fc2",
        "layers.{i}": "decoder.layers.{i}",
    },
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}, "ForQuestionAnswering": {"score": "qa_outputs"}},
)
FAMILIES = (OPT,)
