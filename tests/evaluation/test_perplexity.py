"""Each token's log-probability against a forward pass of its own, and against the models' own losses."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_llm.data.encoding import encode_texts
from hf_llm.evaluation import perplexity
from hf_llm.evaluation.opening import opened

from .conftest import TEXTS


TOLERANCE = 1e-5  # nats, float32


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("length", [1, 9, 10, 11, 14, 15, 40])
def test_windows_score_each_token_once_with_the_stated_context(length, ahead):
    scored = []
    for w in perplexity.windows(length, 10, 4, ahead):
        assert 0 <= w.end - w.begin <= 10 and w.begin <= w.first < w.last <= w.end
        scored += range(w.first, w.last)
        assert w.first - w.begin >= min(w.first, 10 - 4 - ahead)
        assert w.end - w.last >= min(length - w.last, ahead)
    assert scored == list(range(length))


def logprob(model, ids: list[int], place: int, target: int, **inputs) -> float:
    logits = model(input_ids=torch.tensor([ids]), **inputs).logits[0, place]
    return float(logits.double().log_softmax(-1)[target])


@torch.no_grad()
def test_causal_scores_are_those_of_each_text_alone(language_models):
    decoder = language_models["decoder"]
    window, stride = 16, 5
    scored = perplexity.score_texts(decoder, TEXTS, window, stride, batch_size=3)
    for (ids, _), one in zip(encode_texts(decoder.tokenizer, TEXTS), scored, strict=True):
        for w in perplexity.windows(len(ids), window, stride):
            for place in range(w.first, w.last):
                context = ids[w.begin : place].tolist()
                context = decoder.before + context if w.begin == 0 else context
                expected = logprob(decoder.model, context, -1, ids[place])
                assert one.logprobs[place] == pytest.approx(expected, abs=TOLERANCE)


@torch.no_grad()
def test_without_a_start_token_the_first_token_cannot_be_scored(tokenizers):
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    native = opened(LlamaForCausalLM(config), tokenizers["encoder-decoder"])  # puts nothing before a text
    scored = perplexity.score_texts(native, TEXTS, batch_size=2)
    for (ids, token_bytes), one in zip(encode_texts(native.tokenizer, TEXTS), scored, strict=True):
        assert math.isnan(one.logprobs[0]) and not np.isnan(one.logprobs[1:]).any()
        if len(ids) > 1:
            row = torch.tensor(ids, dtype=torch.long)[None]
            loss = native.model(input_ids=row, labels=row).loss.item()  # transformers' own
            sums = one.sums()
            assert sums["nats"] / sums["tokens"] == pytest.approx(loss, abs=TOLERANCE)
            assert sums["bytes"] == token_bytes[1:].sum()
    assert perplexity.figures(one.sums() for one in scored)["unscored_tokens"] == len(TEXTS)


@torch.no_grad()
def test_masked_scores_mask_each_token_in_turn(language_models):
    encoder = language_models["encoder"]
    window, stride = 12, 4
    texts = TEXTS[1:]
    scored = perplexity.score_texts(encoder, texts, window, stride, batch_size=5)
    for (ids, _), one in zip(encode_texts(encoder.tokenizer, texts), scored, strict=True):
        for w in perplexity.windows(len(ids), window, stride, (window - stride) // 2):
            for place in range(w.first, w.last):
                row = ids[w.begin : w.end].tolist()
                row[place - w.begin] = encoder.tokenizer.mask_token_id
                row = [encoder.tokenizer.cls_token_id, *row, encoder.tokenizer.sep_token_id]
                expected = logprob(encoder.model, row, place - w.begin + 1, ids[place])
                assert one.logprobs[place] == pytest.approx(expected, abs=TOLERANCE)


@torch.no_grad()
def test_pairs_have_the_loss_of_the_model(language_models):
    model, tokenizer = language_models["encoder-decoder"].model, language_models["encoder-decoder"].tokenizer
    sources, targets = TEXTS[:3], TEXTS[1:]
    scored = perplexity.score_pairs(language_models["encoder-decoder"], sources, targets, batch_size=2)
    for source, target, one in zip(sources, targets, scored, strict=True):
        labels = tokenizer(target, return_tensors="pt")["input_ids"]
        loss = model(input_ids=tokenizer(source, return_tensors="pt")["input_ids"], labels=labels).loss.item()
        assert -one.logprobs.mean() == pytest.approx(loss, abs=TOLERANCE)
        assert one.token_bytes.sum() == len(target.encode())


def test_figures():
    sums = [
        {"nats": 6.0, "tokens": 3, "bytes": 4, "unscored_tokens": 1},
        {"nats": 2.0, "tokens": 1, "bytes": 4, "unscored_tokens": 0},
    ]
    expected = {"loss": 2.0, "perplexity": math.exp(2), "bits_per_byte": 1 / math.log(2)}
    counts = {"texts": 2, "tokens": 4, "bytes": 8, "unscored_tokens": 1}
    assert perplexity.figures(sums) == pytest.approx({**expected, **counts})


@pytest.mark.parametrize(
    "window, stride, message",
    [(1, None, "window = 1: must be between 2 and"), (16, 16, "stride = 16: must be between 1 and window - 1 = 15")],
)
def test_bad_windows(language_models, window, stride, message):
    with pytest.raises(ValueError, match=message):
        perplexity.score_texts(language_models["decoder"], TEXTS, window, stride)


def test_wrong_stack(language_models):
    with pytest.raises(ValueError, match="use the task conditional-perplexity"):
        perplexity.score_texts(language_models["encoder-decoder"], TEXTS)
    with pytest.raises(ValueError, match="not by a decoder"):
        perplexity.score_pairs(language_models["decoder"], TEXTS, TEXTS)
