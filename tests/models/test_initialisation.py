"""Every group of parameters starts as `LLMPreTrainedModel._init_weights` says."""

import pytest
import torch
from torch import nn

from hf_llm import LLMDecoderForSequenceClassification, LLMEncoderForMaskedLM
from hf_llm.models.feedforward import Router, _Experts
from hf_llm.models.norms import LayerNorm
from hf_llm.models.positions import RelativeBias

from .tiny import MODELS, STACKS, tiny_config


LAYERS, STD, EMBEDDING_STD = 3, 0.03, 0.05
FIELDS = {
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": LAYERS, "vocab_size": 400,
    "initializer_range": STD, "embedding_initializer_range": EMBEDDING_STD, "attention_bias": True, "mlp_bias": True,
    "norm_type": "layernorm", "norm_bias": True, "norm_placement": "sandwich", "embedding_norm": True,
    "tie_word_embeddings": False, "lm_head_bias": True, "num_experts": 4, "mlp_layer_types": "DEE",
    "moe_intermediate_size": 96, "router_bias": True, "expert_bias": True, "shared_expert_intermediate_size": 96,
    "shared_expert_gate": True, "attention_sinks": True,
}  # fmt: skip


def is_zero(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and not tensor.any()


def assert_std(tensor: torch.Tensor, std: float, name: str) -> None:
    """Of the whole, and around zero."""
    assert tensor.std().item() == pytest.approx(std, rel=0.1), name
    assert abs(tensor.mean().item()) < 0.2 * std, name


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("residual_init", ("depth_scaled", "normal"))
def test_every_parameter_starts_as_documented(stack, residual_init):
    model = MODELS[stack](tiny_config(stack, **FIELDS, residual_init=residual_init))
    residual_std = STD / (2 * LAYERS) ** 0.5 if residual_init == "depth_scaled" else STD
    seen = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if module.weight.numel() > 1000:  # a gate has too few numbers for a statistic
                assert_std(module.weight, residual_std if name.endswith(("o_proj", "down_proj")) else STD, name)
            assert module.bias is None or is_zero(module.bias), name
        elif isinstance(module, nn.Embedding):
            assert_std(module.weight, EMBEDDING_STD, name)
        elif isinstance(module, LayerNorm):
            assert (module.weight == 1).all() and is_zero(module.bias), name
        elif isinstance(module, Router):
            assert_std(module.weight, STD, name)
            assert is_zero(module.bias), name
        elif isinstance(module, _Experts):
            assert_std(module.gate_up_proj, STD, name)
            assert_std(module.down_proj, residual_std, name)
            assert is_zero(module.gate_up_proj_bias) and is_zero(module.down_proj_bias), name
        elif hasattr(module, "sinks"):
            assert is_zero(module.sinks), name
        else:
            assert not dict(module.named_parameters(recurse=False)), name
            continue
        seen.add(type(module).__name__)
    assert seen >= {"Linear", "TokenEmbedding", "LayerNorm", "Router", "GatedBiasedExperts", "Attention"}


def test_branches_may_start_at_zero():
    """`residual_init="zero"`: every layer starts as the identity."""
    model = MODELS["decoder"](tiny_config("decoder", residual_init="zero", final_norm=False))
    for layer in model.model.layers:
        assert is_zero(layer.self_attn.o_proj.weight) and is_zero(layer.mlp.down_proj.weight)
    ids = torch.tensor([[5, 6, 7]])
    assert model.model(ids).last_hidden_state.equal(model.model.embed_tokens(ids))


def test_a_unit_offset_norm_starts_at_zero_and_a_bias_like_a_matrix():
    model = MODELS["decoder"](
        tiny_config(
            "decoder", norm_type="rmsnorm_unit_offset", position_embedding="relative_bias", num_attention_heads=16,
            head_dim=4, num_key_value_heads=16, relative_attention_num_buckets=64, initializer_range=STD,
        )
    )  # fmt: skip
    assert all(is_zero(module.weight) for module in model.modules() if isinstance(module, LayerNorm))
    (bias,) = [module for module in model.modules() if isinstance(module, RelativeBias)]
    assert_std(bias.relative_attention_bias.weight, STD, "relative bias")


def test_learned_positions_and_token_types_start_like_embeddings():
    config = tiny_config("encoder", hidden_size=96, position_embedding="learned", type_vocab_size=40,
                         head_transform=True, initializer_range=STD)  # fmt: skip
    model = LLMEncoderForMaskedLM(config)
    for module in (model.model.embed_positions, model.model.embed_token_types, model.head_transform.dense):
        assert_std(module.weight, STD, type(module).__name__)


def test_a_task_head_starts_like_a_matrix():
    model = LLMDecoderForSequenceClassification(tiny_config("decoder", num_labels=100, initializer_range=STD))
    assert_std(model.score.weight, STD, "score")


def test_a_seed_decides_everything():
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(MODELS["decoder"](tiny_config("decoder")).state_dict())
    assert all(tensor.equal(models[1][name]) for name, tensor in models[0].items())
    assert not all(tensor.equal(models[2][name]) for name, tensor in models[0].items())
