"""`hf-llm info`: its figures, on presets, on checkpoints of hf_llm and native ones, and on what is neither."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
)

from hf_llm import LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig
from hf_llm.info import build_on_meta, cache_bytes, parameter_groups, report, runs, shapes
from hf_llm.presets import preset_config
from hf_llm.scale import STRATEGIES, sent_bytes, tensor_parallel, training_bytes
from hf_llm.training.throughput import flops_per_token
from hf_llm_cli import main


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "decoder": (LLMDecoderConfig(**SIZES), AutoModelForCausalLM),
    "experts": (LLMDecoderConfig(**SIZES, num_experts=4), AutoModelForCausalLM),
    "encoder": (LLMEncoderConfig(**SIZES, head_transform=True), AutoModelForMaskedLM),
    "encoder-decoder": (LLMEncoderDecoderConfig(encoder=SIZES, decoder=SIZES), AutoModelForSeq2SeqLM),
    "llama": (LlamaConfig(**SIZES, intermediate_size=48), AutoModelForCausalLM),
    "gpt2": (GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4), AutoModelForCausalLM),
}


def lines(text: str) -> dict[str, str]:
    """The report's lines by what stands before the colon."""
    return dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_in_one_group_and_one_shape(name, tmp_path, capsys):
    config, auto_class = CONFIGS[name]
    model = auto_class.from_config(config)
    config.save_pretrained(tmp_path)

    built = build_on_meta(str(tmp_path))
    groups = parameter_groups(built)
    assert sum(groups.values()) == model.num_parameters()
    assert "other" not in groups
    assert sum(torch.Size(shape).numel() * number for _, shape, number in shapes(built)) == model.num_parameters()

    main(["info", str(tmp_path)])
    printed = capsys.readouterr().out
    assert type(model).__name__ in printed
    assert f"{model.num_parameters():,}" in printed


def test_preset():
    printed = lines(report("llama-3-8b"))
    assert printed["exports to"] == "llama"
    assert printed["decoder"].startswith("32 layers of 4096")
    assert printed["layers 0-31"] == "32 heads of 128, 8 of keys and values; gated silu, 14,336 wide"
    assert printed["key-value cache in bfloat16"] == "131,072 bytes per token, 1.00 GiB for a sequence"
    # 6 per weight but the embeddings, 12 x layers x width x length (PaLM, appendix B)
    expected = 6 * (8_030_261_248 - 128256 * 4096 - 65 * 4096) + 12 * 32 * 4096 * 8192
    assert printed["GFLOPs per token"].endswith(f"{expected / 1e9:,.3f} in training")


def test_layers_by_kind():
    printed = lines(report("gemma-3-270m"))
    assert printed["layers 5, 11, 17"].startswith("4 heads of 256, 1 of keys and values; gated")
    assert printed["layers 0-4, 6-10, 12-16"].startswith("4 heads of 256, 1 of keys and values, window of 512;")
    assert runs([0, 1, 2, 4, 6, 7]) == "0-2, 4, 6-7"


def test_what_no_family_expresses_says_why():
    assert lines(report("transformer-2017-base"))["exports to"].startswith("no native family; ")


@pytest.mark.parametrize("length", [3, 9])
def test_cache_is_what_generation_holds(length):
    config = LLMDecoderConfig(**SIZES, num_key_value_heads=2, layer_types="SL", sliding_window=5)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        for _ in range(length):
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    # transformers keeps one token less than the window: the next one completes it
    spared = 2 * 2 * config.head_dim * 4 * (length >= 5)
    assert cache_bytes(config, length, width=4)["sequence"] - spared == held


def test_cross_attention_has_a_cache_of_its_own():
    decoder = preset_config("t5-small").decoder
    cache = cache_bytes(decoder, 512)
    assert cache["token"] == cache["source token"] == 2 * 8 * 64 * 6 * 2
    assert cache["sequence"] == 2 * 512 * cache["token"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_training_memory_is_what_the_optimizer_holds(optimizer):
    from types import SimpleNamespace

    from hf_llm.training.optimizers import build_optimizer

    model = AutoModelForCausalLM.from_config(CONFIGS["decoder"][0])
    settings = {"weight_decay": 0.0, "decay_embeddings": False, "adam_beta1": 0.9, "adam_beta2": 0.95}
    rates = {"learning_rate": 1e-3, "muon_learning_rate": None, "adam_epsilon": 1e-8, "momentum": 0.9}
    stepped = build_optimizer(model, SimpleNamespace(optimizer=optimizer, **settings, **rates))
    model(torch.zeros(1, 4, dtype=torch.long), labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
    stepped.step()
    held = sum(p.nbytes + p.grad.nbytes for p in model.parameters())
    held += sum(s.nbytes for state in stepped.state.values() for s in state.values() if torch.is_tensor(s) and s.ndim)
    assert training_bytes(model, optimizer, "DDP", processes=8) == held


class Matrix(torch.nn.Linear):
    """75,000 x 100,000: 7.5 billion parameters."""

    def __init__(self):
        super().__init__(75_000, 100_000, bias=False, device="meta")

    def num_parameters(self) -> int:
        return self.weight.numel()


@pytest.mark.parametrize(
    ("strategy", "gigabytes", "volume"), [("ZeRO-1", 31.4, 2), ("ZeRO-2", 16.6, 2), ("ZeRO-3", 1.88, 3)]
)
def test_zero_is_as_published(strategy, gigabytes, volume):
    """Figure 1 of https://arxiv.org/abs/1910.02054 (7.5 B parameters, 64 processes), and section 7."""
    assert training_bytes(Matrix(), "adamw", strategy, 64) == pytest.approx(gigabytes * 1e9, rel=0.005)
    assert sent_bytes(Matrix(), strategy, 10**6) == pytest.approx(volume * 7.5e9 * 2, rel=1e-5)


def test_ddp_and_fsdp2():
    model = build_on_meta("decoder-tiny")
    n = model.num_parameters()
    assert [training_bytes(model, "adamw", name, 2) for name in ("DDP", "FSDP2")] == [16 * n, 8 * n]
    assert [sent_bytes(model, name, 2) for name in ("DDP", "FSDP2")] == [4 * n, 3 * n]
    assert [sent_bytes(model, name, 1) for name in STRATEGIES] == [0] * len(STRATEGIES)


def test_tensor_parallel():
    """By hand: 32 wide, 4 heads, one layer, 48 wide inside, 64 tokens in the vocabulary."""
    sizes = {**SIZES, "num_hidden_layers": 1, "num_key_value_heads": 4, "intermediate_size": 48}
    model = AutoModelForCausalLM.from_config(LLMDecoderConfig(**sizes))
    matrices = 64 * 32 + 4 * 32 * 32 + 3 * 32 * 48
    rest = model.num_parameters() - matrices
    forward = 32 * 3  # embedding, attention's and feed-forward's output
    backward = 32 * 6  # inputs of q, k, v, gate, up and the head
    held, sent = tensor_parallel(model, "adamw", 2, tokens=10)
    assert held == 16 * (matrices // 2 + rest)
    assert sent == 2 * 10 * (2 * (forward + backward) + 64) / 2
    assert tensor_parallel(model, "adamw", 1, tokens=10) == (16 * model.num_parameters(), 0)


def test_shared_layers_cost_what_layers_of_their_own_cost(tmp_path):
    """In FLOPs and in what tensor parallelism sends, not in memory; native models that share as well."""
    sizes = {**SIZES, "num_hidden_layers": 4, "num_key_value_heads": 4, "tie_word_embeddings": False}
    apart, shared = (
        AutoModelForCausalLM.from_config(LLMDecoderConfig(**sizes, layer_sharing=sharing))
        for sharing in (None, [0, 1, 1, 0])
    )
    assert shared.num_parameters() < apart.num_parameters()
    assert flops_per_token(shared, 16) == flops_per_token(apart, 16)
    sent = [tensor_parallel(model, "adamw", 2, tokens=10)[1] for model in (shared, apart)]
    assert sent[0] == sent[1]

    flops = []
    for layers in (2, 4):
        sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        AlbertConfig(vocab_size=64, num_hidden_layers=layers, **sizes).save_pretrained(tmp_path)
        printed = lines(report(str(tmp_path), context=16))["GFLOPs per token"]
        flops.append(float(printed.split()[0]))
    assert flops[1] > 1.7 * flops[0] > 0


def test_config_file_alone(tmp_path, capsys):
    CONFIGS["decoder"][0].save_pretrained(tmp_path)
    main(["info", str(tmp_path / "config.json"), "--context", "16", "--optimizer", "muon", "--processes", "2"])
    printed = capsys.readouterr().out
    assert "for 16 tokens of context" in printed
    assert "training with muon in bfloat16: what each of 2 processes holds" in printed
    assert "FSDP2" in printed and "ZeRO" not in printed


def test_architecture_that_the_core_does_not_cover(tmp_path):
    MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    printed = report(str(tmp_path))
    assert "MambaForCausalLM" in printed
    assert "key-value cache" not in printed


def test_misspelt_preset(capsys):
    with pytest.raises(SystemExit):
        main(["info", "lama-3-8b"])
    error = capsys.readouterr().err
    assert "'lama-3-8b' is neither a preset, nor a checkpoint" in error and "nearest presets: llama-3-8b" in error


def test_no_config(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["info", str(tmp_path)])
    assert exit_info.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
