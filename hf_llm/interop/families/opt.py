"""Meta's OPT (and Galactica): positions counted over real tokens, optional factorised embeddings."""

from ..family import Family, Field, Group, renamed, same
from ..parts import LEARNED, QA, SIZES, layer, narrow_embeddings, switch


def _norms(native) -> dict:
    before = native.do_layer_norm_before
    return {
        "norm_placement": "pre" if before else "post",
        "final_norm": before and not native._remove_final_layer_norm,
    }


def _native_norms(ours) -> dict:
    before = ours.norm_placement == "pre"
    return {"do_layer_norm_before": before, "_remove_final_layer_norm": before and not ours.final_norm}


OPT = Family(
    name="opt",
    stack="decoder",
    fields=(
        *SIZES,
        *same("max_position_embeddings", "attention_dropout", "use_cache"),
        *renamed(intermediate_size="ffn_dim", hidden_act="activation_function"),
        *renamed(residual_dropout="dropout", initializer_range="init_std"),
        Field("enable_bias", ("attention_bias", "attention_output_bias", "mlp_bias")),
        switch("layer_norm_elementwise_affine", "norm_type", "layernorm", "layernorm_non_affine"),
        Group(
            ("do_layer_norm_before", "_remove_final_layer_norm"),
            ("norm_placement", "final_norm"),
            _norms,
            _native_norms,
        ),
        narrow_embeddings("word_embed_proj_dim", "tokens"),
    ),
    constants=LEARNED
    | {
        "norm_eps": 1e-5,
        "norm_bias": True,
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
        **layer("decoder.layers.{i}", self_attn_norm="self_attn_layer_norm", mlp_norm="final_layer_norm"),
        **layer("decoder.layers.{i}", o_proj="self_attn.out_proj", up_proj="fc1", down_proj="fc2"),
        "layers.{i}": "decoder.layers.{i}",
    },
    heads={"ForCausalLM": {}, "ForSequenceClassification": {}, **QA},
)
