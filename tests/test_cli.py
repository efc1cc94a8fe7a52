"""`hf-llm info` on checkpoints of hf_llm, on native ones, and on what is neither."""

import pytest
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, LlamaConfig

from hf_llm import LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig
from hf_llm.cli import build_on_meta, main, parameter_groups


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "decoder": (LLMDecoderConfig(**SIZES), AutoModelForCausalLM),
    "experts": (LLMDecoderConfig(**SIZES, num_experts=4), AutoModelForCausalLM),
    "encoder": (LLMEncoderConfig(**SIZES), AutoModelForMaskedLM),
    "encoder-decoder": (LLMEncoderDecoderConfig(encoder=SIZES, decoder=SIZES), AutoModelForSeq2SeqLM),
    "native": (LlamaConfig(**SIZES, intermediate_size=48), AutoModelForCausalLM),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_in_one_group(name, tmp_path, capsys):
    config, auto_class = CONFIGS[name]
    model = auto_class.from_config(config)
    config.save_pretrained(tmp_path)

    groups = parameter_groups(build_on_meta(str(tmp_path)))
    assert sum(groups.values()) == model.num_parameters()
    assert groups["embeddings"] == model.get_input_embeddings().weight.numel()
    assert "other" not in groups

    main(["info", str(tmp_path)])
    printed = capsys.readouterr().out
    assert type(model).__name__ in printed
    assert f"{model.num_parameters():,}" in printed


def test_config_file_alone(tmp_path, capsys):
    CONFIGS["decoder"][0].save_pretrained(tmp_path)
    main(["info", str(tmp_path / "config.json")])
    assert "LLMDecoderForCausalLM" in capsys.readouterr().out


def test_no_config(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["info", str(tmp_path)])
    assert exit_info.value.code == 1
    assert str(tmp_path) in capsys.readouterr().err
