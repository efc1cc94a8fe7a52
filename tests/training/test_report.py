"""The curves and the texts of a report."""

import functools

import pytest

from hf_llm.training.callbacks import evaluation_text, progress_text
from hf_llm.training.report import draw_figures, draw_history, duration_text, last_logs, notable_fields, samples_table
from hf_llm.training.samples import fenced


HISTORY = [
    {"step": 1, "loss": 6.0, "tokens": 100, "tokens_per_second": 50.0, "mfu": 0.25, "train_seconds": 2.0},
    {"step": 2, "loss": 4.0, "tokens": 200, "tokens_per_second": 50.0, "mfu": 0.25, "train_seconds": 4.0},
    {"step": 2, "eval_loss": 4.5, "eval_perplexity": 90.0, "eval_bits_per_byte": 2.25},
]


@pytest.mark.parametrize("panels", [None, [("loss", ("loss",)), ("speed", ("tokens_per_second", "mfu"))]])
def test_curves_are_drawn_also_of_an_empty_history(panels, tmp_path):
    histories = {"full.png": HISTORY, "empty.png": []}
    draw = functools.partial(draw_history, panels=panels)
    draw_figures(tmp_path, {name: functools.partial(draw, history=history) for name, history in histories.items()})
    full, empty = ((tmp_path / name).read_bytes() for name in histories)
    assert full.startswith(b"\x89PNG") and empty.startswith(b"\x89PNG") and len(full) > len(empty)


def test_the_last_logs_are_those_of_training_and_of_evaluation():
    metrics = last_logs([*HISTORY, {"step": 2, "train_runtime": 9.0}])
    assert metrics["loss"] == 4.0 and metrics["eval_loss"] == 4.5 and "train_runtime" not in metrics


def test_texts():
    assert progress_text(HISTORY[0]) == "loss 6.000, 50 tokens/s, 25% of peak FLOPs"
    assert progress_text({"loss": 1.0, "tokens_per_second": 2000.0}) == "loss 1.000, 2,000 tokens/s"
    assert progress_text({"loss": 1.0, "reward": 0.5, "kl": 2.0}) == "loss 1.000, reward 0.500, KL 2.00"
    many = {f"eval_{name}": 1.0 for name in ("a", "b", "c", "d", "e", "kl", "f", "reward")}
    assert [part.split()[-2] for part in evaluation_text(many).split(", ")] == ["kl", "reward", "a", "b", "c", "d"]
    assert evaluation_text(HISTORY[2]) == "validation loss 4.5000, perplexity 90.0000, bits per byte 2.2500"
    assert [duration_text(s) for s in (5, 65, 7500)] == ["5 s", "1 min 5 s", "2 h 5 min"]
    assert fenced("```\ncode\n```") == "````text\n```\ncode\n```\n````"
    assert notable_fields({"hidden_size": 8, "decoder": {"hidden_size": 4}, "norm_eps": 1}) == {
        "hidden_size": 8,
        "decoder.hidden_size": 4,
    }


def test_samples_are_a_table_of_single_lines():
    history = [{"step": 1, "loss": 2.0}, {"step": 3, "samples": [["a | b", "one\ntwo"], ["c", "word " * 90]]}]
    rows = samples_table(history)
    assert rows[0] == {"step": 3, "prompt": "a \\| b", "output": "one two"}
    assert len(rows) == 2 and len(rows[1]["output"]) <= 200
