"""SmolLM2-135M as an encoder and as an encoder-decoder."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_llm import LLMEncoderDecoderForConditionalGeneration, LLMEncoderForMaskedLM
from hf_llm.data import make_objective
from hf_llm.data.checkpoints import fetch_checkpoint


TEXT = "The capital of France is Paris, which is known for"


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_in_other_stacks(tmp_path):
    """The native logits to 1e-3 (they are as large as 30), in each stack where it sees what the native model does."""
    path = fetch_checkpoint("smollm2-135m-instruct")
    native, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    expected, rows = native(ids).logits, len(tokenizer)

    encoder = LLMEncoderForMaskedLM.from_decoder(path, tokenizer=tokenizer)
    actual = encoder(ids, is_causal=True).logits
    torch.testing.assert_close(actual[..., :rows], expected[..., :rows], rtol=0, atol=1e-3)
    assert tokenizer.mask_token_id == rows and encoder.config.vocab_size >= rows + 1
    tokenizer.save_pretrained(tmp_path)
    reopened = AutoTokenizer.from_pretrained(tmp_path)
    frame = tokenizer.cls_token + TEXT + tokenizer.sep_token
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == reopened.decode(reopened(TEXT)["input_ids"]) == frame
    assert make_objective("masked_lm", reopened, "encoder").longest_chunk((64,)) == 62

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = LLMEncoderDecoderForConditionalGeneration.from_decoder(
        native, tied=True, cross_attention="zero", tokenizer=tokenizer
    )
    actual = model(input_ids=ids[:, :5], decoder_input_ids=ids).logits
    torch.testing.assert_close(actual[..., :rows], expected[..., :rows], rtol=0, atol=1e-3)
    assert len(make_objective("span_corruption", tokenizer, "encoder-decoder").tokens.sentinels) == 100
    parameters = sum(p.numel() for p in native.parameters())
    assert sum(p.numel() for p in model.parameters()) < 1.4 * parameters  # cross-attention, and no second half
