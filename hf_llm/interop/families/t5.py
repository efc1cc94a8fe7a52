"""T5, mT5 and UMT5: RMSNorm, relative position biases, unscaled attention."""

from typing import Any

from ..family import Family, Field, Group, same
from ..parts import QA, both, both_have, halves, in_both, layer, two_layers


def _feed_forward_to_ours(native) -> dict[str, Any]:
    kind = "gated" if native.is_gated_act else "plain"
    return both_have(feed_forward=kind, hidden_act=native.dense_act_fn)


def _feed_forward_to_native(ours) -> dict[str, Any]:
    activation, gated = ours.encoder.hidden_act, ours.encoder.feed_forward == "gated"
    if gated and activation == "gelu_new":
        activation = "gelu"  # which T5 reads as gelu_new where it gates
    return {"feed_forward_proj": f"gated-{activation}" if gated else activation}


def _weights(per_layer_bias: bool):
    def weights(ours) -> dict[str, str]:
        up = "wi_1" if ours.encoder.feed_forward == "gated" else "wi"

        def half(name: str) -> dict[str, str]:
            bias = "layers.{i}.self_attn.position_bias" if per_layer_bias else "position_bias"
            first = "block.{i}.layer.0" if per_layer_bias else "block.0.layer.0"
            attention, cross = "block.{i}.layer.0.SelfAttention", "block.{i}.layer.1.EncDecAttention"
            mlp = f"block.{{i}}.layer.{1 if name == 'encoder' else 2}"
            return {
                bias: f"{first}.SelfAttention",
                **layer(attention, q_proj="q", k_proj="k", v_proj="v", o_proj="o"),
                **layer(cross, cross_q_proj="q", cross_k_proj="k", cross_v_proj="v", cross_o_proj="o"),
                **layer("block.{i}.layer", self_attn_norm="0.layer_norm", cross_attn_norm="1.layer_norm"),
                **layer(f"{mlp}.DenseReluDense", gate_proj="wi_0", up_proj=up, down_proj="wo"),
                **layer(mlp, mlp_norm="layer_norm"),
                "norm": "final_layer_norm",
            }

        return halves(half)

    return weights


FIELDS = (
    *in_both(
        vocab_size="vocab_size",
        hidden_size="d_model",
        head_dim="d_kv",
        intermediate_size="d_ff",
        num_attention_heads="num_heads",
        relative_attention_num_buckets="relative_attention_num_buckets",
        relative_attention_max_distance="relative_attention_max_distance",
        norm_eps="layer_norm_epsilon",
    ),
    Field("num_layers", ("encoder.num_hidden_layers",)),
    Field("num_decoder_layers", ("decoder.num_hidden_layers",)),
    Group(("feed_forward_proj",), both("feed_forward", "hidden_act"), _feed_forward_to_ours, _feed_forward_to_native),
    Field("dropout_rate", both("residual_dropout", "embedding_dropout", "attention_dropout", "activation_dropout")),
    *same("classifier_dropout", "use_cache"),
)
# T5 1.0 scales the decoder's output, 1.1 does not, and what tells them apart is the field of this name.
OPTIONAL_SCALE = Group(
    ("tie_word_embeddings",),
    ("decoder.logit_scale",),
    lambda native: {"decoder.logit_scale": native.d_model**-0.5 if native.scale_decoder_outputs else None},
    lambda ours: {"tie_word_embeddings": ours.decoder.logit_scale is not None},
)
ALWAYS_SCALED = Group(
    (), ("decoder.logit_scale",), lambda native: {"decoder.logit_scale": native.d_model**-0.5}, lambda ours: {}
)


def _t5(name: str, *scale: Group, per_layer_bias: bool = False, ignores: tuple[str, ...] = ()) -> Family:
    """scale: how the decoder's output is scaled before the head, if it is."""
    return Family(
        name=name,
        stack="encoder_decoder",
        fields=(*FIELDS, *scale),
        constants={
            **both_have(
                position_embedding="relative_bias",
                relative_attention_bias_per_layer=per_layer_bias,
                attention_scale=1.0,
            ),
            "share_embeddings": True,
            "classifier_pooling": "eos",
            "classifier_transform": True,
            "classifier_activation": "tanh",
        },
        requires={"is_decoder": False},
        ignores=("initializer_factor", *ignores),
        weights=_weights(per_layer_bias),
        # token classification is left out: T5's reads the encoder and has no decoder
        heads={
            "ForConditionalGeneration": {},
            "ForSequenceClassification": two_layers("classification_head.dense", "classification_head.out_proj"),
            **QA,
        },
        # in old checkpoints: cross-attention has no position bias
        unused=(r"EncDecAttention\.relative_attention_bias",),
        # an untied head (1.1, mT5) is seen in the weights alone; relative positions have no length
        undecided=("tie_word_embeddings", *both("max_position_embeddings")),
    )


T5 = _t5("t5", OPTIONAL_SCALE)
MT5 = _t5("mt5", ignores=("tie_word_embeddings",))
UMT5 = _t5("umt5", ALWAYS_SCALED, per_layer_bias=True)
