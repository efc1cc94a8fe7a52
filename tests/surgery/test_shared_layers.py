"""`share_layers`: the halves of an encoder-decoder have one set of layers, before and after they are saved."""

import pytest
import safetensors.torch
import torch
from models.tiny import SIZES, inputs_of, logits_of, redraw

from hf_llm import LLMEncoderDecoderConfig, LLMEncoderDecoderForConditionalGeneration, to_native
from hf_llm.training.throughput import flops_per_token


VARIANTS = {
    "default": {},
    "everything": {
        "norm_type": "layernorm",
        "norm_bias": True,
        "attention_bias": True,
        "position_embedding": "learned",
        "embedding_norm": True,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "router_bias": True,
    },
    "relative bias of each layer": {
        "position_embedding": "relative_bias",
        "relative_attention_bias_per_layer": True,
    },
}


def shared_model(share_layers: bool = True, **fields) -> LLMEncoderDecoderForConditionalGeneration:
    half = {**SIZES, **fields}
    config = LLMEncoderDecoderConfig(
        encoder=half, decoder=half, share_layers=share_layers, decoder_start_token_id=1, pad_token_id=0
    )
    return redraw(LLMEncoderDecoderForConditionalGeneration(config)).eval()


def own_weights(model) -> set[str]:
    """The encoder's weights that are not the decoder's."""
    weights = dict(model.model.named_parameters(remove_duplicate=False))
    encoder = {name.removeprefix("encoder."): weight for name, weight in weights.items() if name.startswith("enc")}
    return {name for name, weight in encoder.items() if weight is not weights.get(f"decoder.{name}")}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_the_halves_share_what_both_have_and_still_do_when_reopened(fields, tmp_path):
    model = shared_model(**fields)
    expected = set()
    if fields.get("position_embedding") == "relative_bias":  # a causal bias and a bidirectional one differ
        expected = {f"layers.{i}.self_attn.position_bias.relative_attention_bias.weight" for i in (0, 1)}
    assert own_weights(model) == expected
    model.save_pretrained(tmp_path)
    written = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {name.removeprefix("model.encoder.") for name in written if "encoder." in name} == expected
    reopened = LLMEncoderDecoderForConditionalGeneration.from_pretrained(tmp_path)
    assert own_weights(reopened) == expected
    assert logits_of(reopened, inputs_of("encoder_decoder")).equal(logits_of(model, inputs_of("encoder_decoder")))


def test_both_halves_train_the_layers_they_share():
    """The gradient of a shared weight is the sum of what two halves of their own would have."""
    model, apart = shared_model(), shared_model(share_layers=False)
    shared = model.model.state_dict(keep_vars=True)
    apart.model.load_state_dict({name: weight.detach() for name, weight in shared.items()})
    inputs = inputs_of("encoder_decoder")
    for each in (model, apart):
        each(**inputs, labels=inputs["decoder_input_ids"]).loss.backward()
    for name in ("layers.0.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight", "norm.weight"):
        halves = [apart.get_parameter(f"model.{half}.{name}").grad for half in ("encoder", "decoder")]
        assert all(half.any() for half in halves)
        torch.testing.assert_close(shared[f"decoder.{name}"].grad, sum(halves), rtol=0, atol=1e-6)


def test_shared_layers_cost_what_layers_of_their_own_cost():
    assert flops_per_token(shared_model(), 64) == flops_per_token(shared_model(share_layers=False), 64)


def test_halves_that_differ_are_refused():
    with pytest.raises(ValueError, match="`share_layers=True` needs equal `norm_eps`: encoder 1e-06, decoder 1e-05"):
        LLMEncoderDecoderConfig(encoder=SIZES, decoder={**SIZES, "norm_eps": 1e-5}, share_layers=True)


def test_no_native_architecture_shares_layers():
    with pytest.raises(ValueError, match=r"cannot express .*`share_layers=True` \(would become False\)"):
        to_native(shared_model(qk_norm=None, norm_type="rmsnorm_unit_offset", norm_placement="sandwich"), "t5gemma")
