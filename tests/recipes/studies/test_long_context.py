"""Loss by position, and needles in haystacks."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from models.tiny import tiny_model

from studies import long_context, needle
from studies.needle import ASK, FIRST, MARK, QUESTIONS, NeedleConfig


TEXT = "".join(chr(97 + i * 7 % 26) for i in range(150))


@torch.no_grad()
def test_loss_by_position(language_models):
    decoder = language_models["decoder"]
    losses = long_context.loss_by_position(decoder, [TEXT, TEXT[::-1]], 128, 32)  # twice the model's 64 positions
    rows = torch.tensor([decoder.tokenizer(text)["input_ids"][:129] for text in (TEXT, TEXT[::-1])])
    logprobs = decoder.model(rows).logits[:, :-1].double().log_softmax(-1)
    nats = -logprobs.gather(2, rows[:, 1:, None])[..., 0]
    assert losses == pytest.approx(nats.reshape(2, 4, 32).mean((0, 2)).tolist(), abs=1e-5)


def test_table_positions_are_read_up_to_their_end(tokenizers):
    model = tiny_model("decoder", vocab_size=512, position_embedding="learned")
    ending = long_context.opened(model, tokenizers["decoder"])
    losses = long_context.loss_by_position(ending, [TEXT], 128, 16)
    scored = long_context.score_texts(ending, [TEXT[:63]])[0].logprobs  # of 64 positions, one is for <bos>
    expected = [-scored[i : i + 16].mean() for i in range(0, 64, 16)]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_scaling_merges_into_the_models_rope(language_models, tmp_path):
    decoder = language_models["decoder"]
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    plain = long_context.open_with(tmp_path)
    scaled = long_context.open_with(tmp_path, {"rope_type": "linear", "factor": 8.0})
    theta = plain.model.config.rope_parameters["rope_theta"]
    assert scaled.model.config.rope_parameters == {"rope_type": "linear", "factor": 8.0, "rope_theta": theta}
    frequencies = [m.model.model.rotary_emb.inv_freq for m in (plain, scaled)]
    torch.testing.assert_close(frequencies[1], frequencies[0] / 8)


@pytest.fixture
def study(tmp_path, monkeypatch, tokenizers):
    """Settings of a study whose models are not trained."""
    tokenizers["decoder"].save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": TEXT + str(i)}) + "\n" for i in range(40)))

    def save(settings, folder):
        fields = {k: v for k, v in settings["model"].items() if k != "model_type"}
        tiny_model("decoder", vocab_size=512, **{"max_position_embeddings": 32, **fields}).save_pretrained(folder)
        tokenizers["decoder"].save_pretrained(folder)

    monkeypatch.setattr(long_context, "run_cell", save)
    return {
        "model": {"model_type": "hf_llm_decoder"},
        "tokenizer": {"path": str(tmp_path / "tokenizer")},
        "data": {"corpus": str(tmp_path / "texts.jsonl"), "row_length": 32, "held_out_fraction": 0.3},
        "objective": {"name": "causal"},
        "training": {"max_steps": 1},
        "long_context": {
            "schemes": {
                "rope": {"position_embedding": "rope"},
                "learned": {"position_embedding": "learned"},
                "none": {"position_embedding": "none"},
            },
            "scalings": {"linear": {"rope_type": "linear", "factor": 4.0}},
            "multiples": [1, 2, 4],
            "documents": 3,
        },
    }


def test_a_study_reports_each_kind_and_each_scaling(study, tmp_path):
    result = long_context.run_study(study, tmp_path / "out", say=lambda text: None)
    assert list(result["losses"]) == ["rope", "rope, linear", "learned", "none"]
    assert result["documents"] == 3
    table = (tmp_path / "out" / "long_context.md").read_text()
    assert f"| learned | {math.exp(result['losses']['learned'][-1]):,.1f} | – | – |" in table
    last = result["losses"]["rope"][-1]
    assert f"| {math.exp(last):,.1f} |" in table
    assert (tmp_path / "out" / "long_context.png").stat().st_size > 10_000


def test_wrong_studies(study, tmp_path):
    study["long_context"]["multiples"] = [64]
    with pytest.raises(ValueError, match="no held-out document has 2,048 tokens"):
        long_context.run_study(study, tmp_path / "out")
    study["long_context"]["multiples"] = [0]
    with pytest.raises(ValueError, match=r"long_context.multiples = \[0\]"):
        long_context.run_study(study, tmp_path / "out")


def test_haystacks_hold_one_needle_and_ask_for_it():
    ids, labels = needle.haystacks(np.random.default_rng(0), 50, 40, 64)
    for row, label in zip(ids, labels):
        (place,) = (row == MARK).nonzero()[0].tolist()
        asked = (row == ASK).nonzero()[:, 0]
        assert len(asked) == QUESTIONS and asked.min() > place + 1
        assert (label[asked] == row[place + 1]).all() and row[place + 1] >= FIRST
        assert (label[row != ASK] == -100).all()


@pytest.mark.parametrize("depth, place", [(0.0, 0), (0.5, 18), (1.0, 37)])
def test_depth(depth, place):
    ids, labels = needle.haystacks(np.random.default_rng(0), 2, 40, 64, depth)
    assert (ids[:, place] == MARK).all() and (ids[:, -1] == ASK).all()
    assert (labels[:, -1] == ids[:, place + 1]).all()


WINDOWED = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "rope_layers": [True, False],
    "tie_word_embeddings": False,
}


@torch.no_grad()
def test_reading_in_chunks_changes_nothing():
    model = tiny_model("decoder", **{k: v for k, v in WINDOWED.items() if k != "hidden_size"})
    ids = torch.randint(4, 64, (2, 50), generator=torch.Generator().manual_seed(0))
    expected = model(ids).logits[:, -1]
    for chunk in (7, 16, 50):
        torch.testing.assert_close(needle.last_logits(model, ids, chunk), expected, rtol=0, atol=1e-5)


def test_recall_is_measured_once(tmp_path, monkeypatch):
    config = NeedleConfig(test_lengths=[24, 36], depths=[0.0, 1.0], trials=2)
    model = tiny_model("decoder", **{k: v for k, v in WINDOWED.items() if k != "hidden_size"})
    found = needle.recall(model, config, tmp_path, say=lambda text: None)
    assert found.shape == (2, 2)
    monkeypatch.setattr(needle, "last_logits", None)
    assert (needle.recall(model, config, tmp_path, say=lambda text: None) == found).all()


@pytest.mark.slow
def test_a_trained_model_finds_needles_beyond_its_lengths(tmp_path, monkeypatch):
    config = NeedleConfig(WINDOWED, lengths=[12, 24], steps=200, test_lengths=[24, 96], depths=[0.0, 1.0], trials=8)
    model = needle.finder(config, tmp_path, say=lambda text: None)
    found = needle.recall(model, config, tmp_path, say=lambda text: None)
    assert found.min() >= 0.75  # chance is 1 of 60
    monkeypatch.setattr(needle, "train_finder", None)  # it is not trained again
    assert "100%" in needle.run_study({"needle": dataclasses.asdict(config)}, tmp_path)
    assert (tmp_path / "needle.png").stat().st_size > 10_000
    again = needle.finder(config, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"lengths": [8]}, r"needle.lengths = \[8\]: needs lengths of at least 12"),
        ({"depths": [1.5]}, r"needle.depths = \[1.5\]: must be between 0 and 1"),
        ({"vocab_size": 4}, "needle.vocab_size = 4: must be at least 5"),
    ],
)
def test_wrong_haystacks(fields, message):
    with pytest.raises(ValueError, match=message):
        NeedleConfig(**fields)
