"""transformers' EncoderDecoderModel and its kin take our stacks, as they take BERT and GPT-2."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechEncoderDecoderModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from hf_llm import LLMDecoderForCausalLM, LLMEncoderModel

from .tiny import EXPERTS, VOCABULARY, redraw, tiny_config, tokens


BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
SPEECH = {
    **BERT, "conv_dim": (16, 16), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
}  # fmt: skip
HALVES = {
    "our encoder": lambda: LLMEncoderModel(tiny_config("encoder")),
    "our wider encoder": lambda: LLMEncoderModel(tiny_config("encoder", hidden_size=48)),
    "bert encoder": lambda: BertModel(BertConfig(**BERT)),
    "vit": lambda: ViTModel(ViTConfig(**BERT, image_size=8, patch_size=4)),
    "wav2vec2": lambda: Wav2Vec2Model(Wav2Vec2Config(**SPEECH)),
    "our decoder": lambda: LLMDecoderForCausalLM(tiny_config("decoder")),
    "our sliding decoder": lambda: LLMDecoderForCausalLM(tiny_config("decoder", layer_types="SL", sliding_window=4)),
    "our experts": lambda: LLMDecoderForCausalLM(tiny_config("decoder", **EXPERTS)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "bert decoder": lambda: BertLMHeadModel(BertConfig(**BERT, is_decoder=True)),
}
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
TEXT = {"input_ids": tokens(2, 9) * MASK, "attention_mask": MASK}
CASES = [
    (EncoderDecoderModel, "bert encoder", "gpt2", TEXT),  # the control
    (EncoderDecoderModel, "our encoder", "our decoder", TEXT),
    (EncoderDecoderModel, "our wider encoder", "our experts", TEXT),
    (EncoderDecoderModel, "bert encoder", "our sliding decoder", TEXT),
    (EncoderDecoderModel, "our encoder", "gpt2", TEXT),
    (EncoderDecoderModel, "our encoder", "bert decoder", TEXT),
    (VisionEncoderDecoderModel, "vit", "our decoder", {"pixel_values": torch.randn(2, 3, 8, 8)}),
    (SpeechEncoderDecoderModel, "wav2vec2", "our decoder", {"input_values": torch.randn(2, 60)}),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[1]}, {case[2]}")
def pair(request, tmp_path_factory):
    """A model of two saved halves, with weights so large that all of them matter, its inputs, and the folder."""
    folder = tmp_path_factory.mktemp("halves")
    kind, *halves, inputs = request.param
    for half, name in zip(("encoder", "decoder"), halves):
        HALVES[name]().save_pretrained(folder / half)
    model = kind.from_encoder_decoder_pretrained(str(folder / "encoder"), str(folder / "decoder"))
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, None
    return redraw(model, std=0.3), inputs, folder


def test_a_pair_trains(pair):
    """Labels are shifted once, to make the decoder's inputs; every weight that is used has a gradient."""
    model, inputs, _ = pair
    labels = tokens(2, 7, seed=3).index_fill(1, torch.tensor([6]), -100)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        outputs = model(**inputs, labels=labels)
        outputs.loss.backward()
        losses.append(float(outputs.loss.detach()))
        assert all(p.grad is not None for name, p in model.decoder.named_parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
    model.eval()
    start = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=1)
    logits = model(**inputs, decoder_input_ids=start).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


def test_a_pair_generates(pair):
    """With a cache as without one, from the source and not from its padding."""
    model, inputs, _ = pair
    model.eval()
    settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for beams in (1, 2):
        cached, whole = (model.generate(**inputs, **settings, num_beams=beams, use_cache=use) for use in (True, False))
        assert cached.sequences.equal(whole.sequences)
        torch.testing.assert_close(cached.logits, whole.logits, rtol=1e-4, atol=1e-4)
    model.decoder.set_attn_implementation("eager")
    outputs = model(**inputs, decoder_input_ids=cached.sequences, output_attentions=True)
    model.decoder.set_attn_implementation("sdpa")
    records = Version(transformers.__version__) >= Version("5.20")  # of native halves, too
    assert not records or len(outputs.cross_attentions) == len(outputs.decoder_attentions) == 2
    if records and "attention_mask" in inputs:
        assert all((weights[1, ..., 6:] == 0).all() for weights in outputs.cross_attentions)
    others = {name: value.flip(0) for name, value in inputs.items()}
    assert not torch.allclose(model(**others, decoder_input_ids=cached.sequences).logits, outputs.logits, atol=1e-3)


def test_a_pair_is_saved_and_opened(pair, tmp_path):
    model, inputs, folder = pair
    model.eval().save_pretrained(tmp_path / "pair")
    reopened = type(model).from_pretrained(tmp_path / "pair")
    inputs = {**inputs, "decoder_input_ids": tokens(2, 5)}
    torch.testing.assert_close(reopened(**inputs).logits, model(**inputs).logits)
    trained = AutoModelForCausalLM.from_pretrained(folder / "decoder")  # the half is as it was
    assert not any("cross" in name for name, _ in trained.named_parameters())
    assert transformers.AutoConfig.from_pretrained(tmp_path / "pair").decoder.add_cross_attention
