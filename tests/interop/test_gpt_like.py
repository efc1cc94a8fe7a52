"""What the GPT-like families refuse, in either direction, and what their tables carry beside the architecture."""

import pytest
import torch
import transformers

import hf_llm
from hf_llm.interop import InteropError, convert

from . import parity
from .cases_gpt_like import GPT_LIKE


UNREADABLE = {
    "gpt2-cross-attention": ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    "gptj-whole-width": ("gptj", {"rotary_dim": 0}, "rotary_dim"),
    "bloom-exact": ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact"),
    "mpt-bias": ("mpt", {"no_bias": False}, "no_bias"),
    "mpt-logits": ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale"),
    "mpt-width": ("mpt", {"expansion_ratio": 2}, "expansion_ratio"),
    "mpt-norm": ("mpt", {"norm_type": "rmsnorm"}, "norm_type"),
    "mpt-positions": ("mpt", {"attn_config": {"alibi": False}}, "alibi"),
    "mpt-slopes": ("mpt", {"attn_config": {"alibi_bias_max": 16}}, "alibi_bias_max"),
    "mpt-prefix": ("mpt", {"attn_config": {"prefix_lm": True}}, "prefix_lm"),
    "mpt-qk-norm": ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln"),
    "mpt-multi-query": ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type"),
    "falcon-new-sequential": (
        "falcon",
        {"new_decoder_architecture": True, "parallel_attn": False},
        "new_decoder_architecture",
    ),
    "falcon-old-two-norms": ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
}
# family, native switches, a change to the imported configuration -> the field that the family cannot express
INEXPRESSIBLE = {
    "gpt-width": ("openai-gpt", {"intermediate_size": 40}, "intermediate_size"),
    "gpt-exact-gelu": ("openai-gpt", {"hidden_act": "gelu"}, "hidden_act"),
    "gpt2-scale": ("gpt2", {"attention_scale": 0.5}, "attention_scale"),
    "gpt2-head-bias": ("gpt2", {"lm_head_bias": True}, "lm_head_bias"),
    "gpt2-grouped": ("gpt2", {"num_key_value_heads": 2}, "num_key_value_heads"),
    "gpt_neo-scale": ("gpt_neo", {"attention_scale": None}, "attention_scale"),
    "gptj-theta": ("gptj", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "rope_theta"),
    "gptj-alibi": ("gptj", {"position_embedding": "alibi", "rope_parameters": None}, "position_embedding"),
    "gpt_neox-one-norm": ("gpt_neox", {"parallel_norms": 1}, "parallel_norms"),
    "gpt_neox-alibi": ("gpt_neox", {"position_embedding": "alibi", "rope_parameters": None}, "position_embedding"),
    "opt-sandwich": ("opt", {"norm_placement": "sandwich"}, "norm_placement"),
    "opt-some-bias": ("opt", {"mlp_bias": False}, "mlp_bias"),
    "opt-eps": ("opt", {"norm_eps": 1e-6}, "norm_eps"),
    "bloom-gelu": ("bloom", {"hidden_act": "gelu"}, "hidden_act"),
    "mpt-bias": ("mpt", {"norm_bias": True}, "norm_bias"),
    "falcon-sequential": ("falcon", {"norm_placement": "pre", "num_key_value_heads": 2}, "num_key_value_heads"),
    "falcon-partial": ("falcon", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial"),
    "falcon-gate": ("falcon", {"feed_forward": "gated"}, "feed_forward"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_switches_without_a_place_are_refused(case):
    family, switches, field = UNREADABLE[case]
    base = {name: value for name, value in GPT_LIKE[family][0].items() if name != "attention"}
    native = transformers.CONFIG_MAPPING[family](**base | switches)
    with pytest.raises(InteropError, match=f"`{field}="):
        convert.to_our_config(parity.FAMILIES[family], native)


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_fields_that_a_family_cannot_express_are_named(case):
    family, changes, field = INEXPRESSIBLE[case]
    base = {name: value for name, value in GPT_LIKE[family][0].items() if name != "attention"}
    ours = convert.to_our_config(parity.FAMILIES[family], transformers.CONFIG_MAPPING[family](**base)).to_dict()
    with pytest.raises(InteropError, match=field):
        convert.to_native_config(parity.FAMILIES[family], hf_llm.LLMDecoderConfig.from_dict(ours | changes))


@pytest.mark.parametrize("heads", [4, 12])
@torch.no_grad()
def test_falcon_rounds_its_position_bias(heads):
    """To bfloat16, by the position of the key: seen in long rows, and wherever slopes are no power of two."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 4 * heads, "num_attention_heads": heads, "alibi": True}
    native = parity.native_model("falcon", vocab_size=parity.VOCABULARY, pad_token_id=0, **sizes)
    ours = parity.imported(native)
    ids = parity.inputs(length=300)
    mask = torch.ones_like(ids)
    mask[1, :70] = 0
    wanted = native(ids, attention_mask=mask).logits
    parity.assert_close(ours(ids, attention_mask=mask).logits, wanted, "logits", mask)
    options = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    tokens = native.generate(ids, **options)
    assert torch.equal(ours.generate(ids, **options), tokens)
    assert torch.equal(ours.generate(ids, **options, cache_implementation="static"), tokens)

    ours.model.position_bias.dtype = None
    assert (ours(ids, attention_mask=mask).logits - wanted)[mask.bool()].abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "bloom", "falcon", "mpt"])
def test_training_settings_are_carried(family):
    """Dropout and initialisation, without which training would not continue as it began."""
    table = parity.FAMILIES[family]
    fields = {name: entry.native for entry in table.fields if hasattr(entry, "native") for name in entry.ours}
    native = transformers.CONFIG_MAPPING[family](
        **{fields["residual_dropout"]: 0.25, fields["initializer_range"]: 0.5, "use_cache": False}
    )
    ours = convert.to_our_config(table, native)
    assert (ours.residual_dropout, ours.initializer_range, ours.use_cache) == (0.25, 0.5, False)
    back = convert.to_native_config(table, ours)
    for name in (fields["residual_dropout"], fields["initializer_range"], "use_cache"):
        assert getattr(back, name) == getattr(native, name)
