"""The same weights give the same logits as transformers' own models: the reference for every part of the core.

The names are translated here by small tables, apart from `hf_llm.interop`, so that one checks the other.
"""

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from .native import LLAMA, load_native
from .tiny import SIZES, redraw, tiny_model, tokens


HEADS, HEAD_DIM = SIZES["num_attention_heads"], SIZES["hidden_size"] // SIZES["num_attention_heads"]
NATIVE_SIZES = {name: value for name, value in SIZES.items() if name != "pad_token_id"}
SQUARE = {name: value for name, value in NATIVE_SIZES.items() if name != "num_key_value_heads"}

GEMMA = [
    (r"(.*)\.input_layernorm\.(.*)", r"\1.self_attn_norm.\2"),
    (r"(.*)\.post_attention_layernorm\.(.*)", r"\1.self_attn_output_norm.\2"),
    (r"(.*)\.pre_feedforward_layernorm\.(.*)", r"\1.mlp_norm.\2"),
    (r"(.*)\.post_feedforward_layernorm\.(.*)", r"\1.mlp_output_norm.\2"),
]
OLMO2 = [
    (r"(.*)\.post_attention_layernorm\.(.*)", r"\1.self_attn_norm.\2"),
    (r"(.*)\.post_feedforward_layernorm\.(.*)", r"\1.mlp_norm.\2"),
]
GPT2 = [
    (r"transformer\.wte\.(.*)", r"model.embed_tokens.\1"),
    (r"transformer\.wpe\.(.*)", r"model.embed_positions.\1"),
    (r"transformer\.ln_f\.(.*)", r"model.norm.\1"),
    (r"transformer\.h\.(\d+)\.ln_1\.(.*)", r"model.layers.\1.self_attn_norm.\2"),
    (r"transformer\.h\.(\d+)\.ln_2\.(.*)", r"model.layers.\1.mlp_norm.\2"),
    (r"transformer\.h\.(\d+)\.attn\.c_attn\.(.*)", r"model.layers.\1.self_attn.qkv.\2"),
    (r"transformer\.h\.(\d+)\.attn\.c_proj\.(.*)", r"model.layers.\1.self_attn.o_proj.\2"),
    (r"transformer\.h\.(\d+)\.mlp\.c_fc\.(.*)", r"model.layers.\1.mlp.up_proj.\2"),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj\.(.*)", r"model.layers.\1.mlp.down_proj.\2"),
]
NEOX = [
    (r"gpt_neox\.embed_in\.(.*)", r"model.embed_tokens.\1"),
    (r"gpt_neox\.final_layer_norm\.(.*)", r"model.norm.\1"),
    (r"gpt_neox\.layers\.(\d+)\.input_layernorm\.(.*)", r"model.layers.\1.self_attn_norm.\2"),
    (r"gpt_neox\.layers\.(\d+)\.post_attention_layernorm\.(.*)", r"model.layers.\1.mlp_norm.\2"),
    (r"gpt_neox\.layers\.(\d+)\.attention\.query_key_value\.(.*)", r"model.layers.\1.self_attn.qkv.\2"),
    (r"gpt_neox\.layers\.(\d+)\.attention\.dense\.(.*)", r"model.layers.\1.self_attn.o_proj.\2"),
    (r"gpt_neox\.layers\.(\d+)\.mlp\.dense_h_to_4h\.(.*)", r"model.layers.\1.mlp.up_proj.\2"),
    (r"gpt_neox\.layers\.(\d+)\.mlp\.dense_4h_to_h\.(.*)", r"model.layers.\1.mlp.down_proj.\2"),
]
BERT_LAYER = r"bert\.encoder\.layer\.(\d+)"
BERT = [
    (r"bert\.embeddings\.word_embeddings\.(.*)", r"model.embed_tokens.\1"),
    (r"bert\.embeddings\.position_embeddings\.(.*)", r"model.embed_positions.\1"),
    (r"bert\.embeddings\.token_type_embeddings\.(.*)", r"model.embed_token_types.\1"),
    (r"bert\.embeddings\.LayerNorm\.(.*)", r"model.embed_norm.\1"),
    (BERT_LAYER + r"\.attention\.self\.query\.(.*)", r"model.layers.\1.self_attn.q_proj.\2"),
    (BERT_LAYER + r"\.attention\.self\.key\.(.*)", r"model.layers.\1.self_attn.k_proj.\2"),
    (BERT_LAYER + r"\.attention\.self\.value\.(.*)", r"model.layers.\1.self_attn.v_proj.\2"),
    (BERT_LAYER + r"\.attention\.output\.dense\.(.*)", r"model.layers.\1.self_attn.o_proj.\2"),
    (BERT_LAYER + r"\.attention\.output\.LayerNorm\.(.*)", r"model.layers.\1.self_attn_norm.\2"),
    (BERT_LAYER + r"\.intermediate\.dense\.(.*)", r"model.layers.\1.mlp.up_proj.\2"),
    (BERT_LAYER + r"\.output\.dense\.(.*)", r"model.layers.\1.mlp.down_proj.\2"),
    (BERT_LAYER + r"\.output\.LayerNorm\.(.*)", r"model.layers.\1.mlp_norm.\2"),
    (r"cls\.predictions\.transform\.dense\.(.*)", r"head_transform.dense.\1"),
    (r"cls\.predictions\.transform\.LayerNorm\.(.*)", r"head_transform.norm.\1"),
    (r"cls\.predictions\.decoder\.(.*)", r"lm_head.\1"),
]
T5_LAYER = r"(encoder|decoder)\.block\.(\d+)\.layer"
T5 = [
    (r"(encoder|decoder)\.final_layer_norm\.(.*)", r"model.\1.norm.\2"),
    (r"(encoder|decoder)\.embed_tokens\.(.*)", r"model.\1.embed_tokens.\2"),
    (T5_LAYER + r".*\.relative_attention_bias\.(.*)", r"model.\1.position_bias.relative_attention_bias.\3"),
    (T5_LAYER + r"\.0\.SelfAttention\.(\w)\.(.*)", r"model.\1.layers.\2.self_attn.\3_proj.\4"),
    (T5_LAYER + r"\.1\.EncDecAttention\.(\w)\.(.*)", r"model.\1.layers.\2.cross_attn.\3_proj.\4"),
    (T5_LAYER + r"\.\d\.DenseReluDense\.wi\.(.*)", r"model.\1.layers.\2.mlp.up_proj.\3"),
    (T5_LAYER + r"\.\d\.DenseReluDense\.wo\.(.*)", r"model.\1.layers.\2.mlp.down_proj.\3"),
    (T5_LAYER + r"\.0\.layer_norm\.(.*)", r"model.\1.layers.\2.self_attn_norm.\3"),
    (r"(decoder)\.block\.(\d+)\.layer\.1\.layer_norm\.(.*)", r"model.\1.layers.\2.cross_attn_norm.\3"),
    (T5_LAYER + r"\.\d\.layer_norm\.(.*)", r"model.\1.layers.\2.mlp_norm.\3"),
]
BART = [
    (r"(.*)\.layernorm_embedding\.(.*)", r"\1.embed_norm.\2"),
    (r"(.*)\.encoder_attn\.out_proj\.(.*)", r"\1.cross_attn.o_proj.\2"),
    (r"(.*)\.encoder_attn\.(.*)", r"\1.cross_attn.\2"),
    (r"(.*)\.encoder_attn_layer_norm\.(.*)", r"\1.cross_attn_norm.\2"),
    (r"(.*)\.self_attn\.out_proj\.(.*)", r"\1.self_attn.o_proj.\2"),
    (r"(.*)\.self_attn_layer_norm\.(.*)", r"\1.self_attn_norm.\2"),
    (r"(.*)\.final_layer_norm\.(.*)", r"\1.mlp_norm.\2"),
    (r"(.*)\.fc1\.(.*)", r"\1.mlp.up_proj.\2"),
    (r"(.*)\.fc2\.(.*)", r"\1.mlp.down_proj.\2"),
]


def transposed_thirds(name, tensor):
    """GPT-2: matrices are stored (in, out), with q, k and v side by side."""
    if ".layers." in name and tensor.ndim == 2:
        tensor = tensor.T
    if ".qkv." in name:
        return {name.replace("qkv", f"{part}_proj"): third for part, third in zip("qkv", tensor.chunk(3))}
    return {name: tensor}


def interleaved_thirds(name, tensor):
    """GPT-NeoX: q, k and v of one head, then of the next."""
    if ".qkv." in name:
        parts = tensor.unflatten(0, (HEADS, 3, HEAD_DIM))
        return {name.replace("qkv", f"{part}_proj"): parts[:, i].flatten(0, 1) for i, part in enumerate("qkv")}
    return {name: tensor}


def without(*endings):
    """Leave out native tensors that are copies of others."""
    return lambda name, tensor: {} if name.endswith(endings) else {name: tensor}


def bart_weights(name, tensor):
    if name == "final_logits_bias":
        return {"lm_head.bias": tensor[0]}
    return {} if name == "model.shared.weight" else {name: tensor}


LAYER_NORM = {"norm_type": "layernorm", "norm_bias": True, "norm_eps": 1e-5}
BIASES = {"attention_bias": True, "mlp_bias": True, "qk_norm": None, "num_key_value_heads": HEADS}
PLAIN = {"feed_forward": "plain", "hidden_act": "gelu", **LAYER_NORM, **BIASES}
# name: (native class, its configuration, our stack, our fields, names, layouts)
CASES = {
    "llama": (
        "LlamaForCausalLM", {**NATIVE_SIZES, "attention_bias": True, "mlp_bias": True}, "decoder",
        {"qk_norm": None, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, LLAMA, None,
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        {**NATIVE_SIZES, "head_dim": 10, "layer_types": ["sliding_attention", "full_attention"],
         "use_sliding_window": True, "sliding_window": 4},
        "decoder", {"head_dim": 10, "layer_types": "SL", "sliding_window": 4, "tie_word_embeddings": False}, LLAMA,
        None,
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**NATIVE_SIZES, "head_dim": 8, "moe_intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
         "norm_topk_prob": True},
        "decoder",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "tie_word_embeddings": False},
        LLAMA, None,
    ),
    "mixtral": (
        "MixtralForCausalLM", {**NATIVE_SIZES, "num_local_experts": 4}, "decoder",
        {"num_experts": 4, "num_experts_per_tok": 2, "qk_norm": None, "norm_eps": 1e-5,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": False},
        LLAMA, None,
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**NATIVE_SIZES, "head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 4,
         "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
        "decoder",
        {"qk_norm": None, "norm_type": "rmsnorm_unit_offset", "norm_placement": "sandwich", "attention_scale": 0.25,
         "layer_types": "SL", "sliding_window": 4, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0,
         "hidden_act": "gelu_pytorch_tanh", "embedding_multiplier": 32**0.5},
        GEMMA, None,
    ),
    "olmo2": (
        "Olmo2ForCausalLM", {**NATIVE_SIZES, "rms_norm_eps": 1e-6}, "decoder",
        {"qk_norm": "full", "norm_placement": "branch", "tie_word_embeddings": False}, OLMO2, None,
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {**SQUARE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        "decoder",
        {**PLAIN, "norm_placement": "parallel", "parallel_norms": 2, "tie_word_embeddings": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        NEOX, interleaved_thirds,
    ),
    "gpt2": (
        "GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                            "n_inner": 48, "scale_attn_by_inverse_layer_idx": True},
        "decoder",
        {**PLAIN, "hidden_act": "gelu_new", "position_embedding": "learned",
         "scale_attention_by_inverse_layer_idx": True},
        GPT2, transposed_thirds,
    ),
    "bert": (
        "BertForMaskedLM", SQUARE, "encoder",
        {**PLAIN, "norm_eps": 1e-12, "norm_placement": "post", "position_embedding": "learned", "type_vocab_size": 2,
         "embedding_norm": True, "final_norm": False, "head_transform": True, "lm_head_bias": True},
        BERT, without("predictions.bias"),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0},
        "encoder_decoder",
        {"feed_forward": "plain", "hidden_act": "relu", "qk_norm": None, "num_key_value_heads": HEADS,
         "position_embedding": "relative_bias", "attention_scale": 1.0, "logit_scale": 32**-0.5,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
        T5, without("shared.weight"),
    ),
    "bart": (
        "BartForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
         "scale_embedding": True},
        "encoder_decoder",
        {**PLAIN, "norm_placement": "post", "position_embedding": "learned", "position_offset": 2,
         "lm_head_bias": True, "embedding_norm": True, "final_norm": False, "embedding_multiplier": 32**0.5},
        BART, bart_weights,
    ),
}  # fmt: skip


def redrawn(native):
    """Every parameter and buffer of a native model drawn anew; its dropouts are off."""
    redraw(native)
    if hasattr(native, "final_logits_bias"):
        native.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    return native.eval()


@pytest.mark.parametrize(
    ("name", "backend"),
    # sdpa has no softcap
    [(name, backend) for name in CASES for backend in ("eager", "sdpa") if (name, backend) != ("gemma2", "sdpa")],
)
def test_logits_are_the_native_ones(name, backend):
    """Whole and right-padded batches."""
    native_class, native_fields, stack, fields, table, change = CASES[name]
    native_class = getattr(transformers, native_class)
    native = redrawn(native_class(native_class.config_class(**native_fields, attn_implementation="eager")))
    ours = load_native(tiny_model(stack, backend, **fields), native, table, change)

    inputs = {"input_ids": tokens(2, 20)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if stack == "encoder_decoder":
        inputs["decoder_input_ids"] = tokens(2, 15, seed=1)
    elif stack == "encoder":
        inputs["token_type_ids"] = tokens(2, 20, seed=2) % 2
    with torch.no_grad():
        expected = native(**inputs).logits
        assert expected.std() > 0.05
        torch.testing.assert_close(ours(**inputs).logits, expected, rtol=0, atol=1e-5)
        inputs["attention_mask"][1, -6:] = 0
        expected, logits = native(**inputs).logits, ours(**inputs).logits
    real = slice(None) if stack == "encoder_decoder" else inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5)


ROPE = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_theta": 10000.0, "factor": 4.0},
    "yarn": {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0},
    "longrope": {
        "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 5.0, 9.0],
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("rope_type", ROPE)
def test_every_scaling_of_rope_is_transformers_own(rope_type):
    """Below and above the length that a scaling starts from, in this order and back."""
    sizes = {**NATIVE_SIZES, "max_position_embeddings": 16 if rope_type == "dynamic" else 64}
    rope = {"rope_type": rope_type, **ROPE[rope_type]}
    native = redrawn(LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope, rms_norm_eps=1e-6)))
    ours = load_native(
        tiny_model("decoder", **sizes, rope_parameters=rope, qk_norm=None, tie_word_embeddings=False), native, LLAMA
    )
    plain = tiny_model("decoder", **sizes, qk_norm=None, tie_word_embeddings=False)
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for length in (10, 40, 12):
            ids = tokens(2, length, seed=length)
            torch.testing.assert_close(ours(ids).logits, native(ids).logits, rtol=0, atol=1e-5)
        ids = tokens(2, 40)
        assert (ours(ids).logits - plain(ids).logits).abs().max() > 1e-2
