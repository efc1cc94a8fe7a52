"""The loss curve and the texts of a report."""

from hf_llm.training.callbacks import evaluation_text, progress_text
from hf_llm.training.report import (
    duration_text,
    final_metrics,
    notable_fields,
    plot_loss_curve,
    samples_text,
    summary_text,
)
from hf_llm.training.samples import Sample


HISTORY = [
    {"step": 1, "loss": 6.0, "tokens": 100, "tokens_per_second": 50.0, "mfu": 0.25, "train_seconds": 2.0},
    {"step": 2, "loss": 4.0, "tokens": 200, "tokens_per_second": 50.0, "mfu": 0.25, "train_seconds": 4.0},
    {"step": 2, "eval_loss": 4.5, "eval_perplexity": 90.0, "eval_bits_per_byte": 2.25},
]


def test_the_loss_curve_is_drawn_also_of_an_empty_history(tmp_path):
    for name, history in (("full", HISTORY), ("empty", [])):
        plot_loss_curve(tmp_path / f"{name}.png", history, title=name)
    full, empty = ((tmp_path / f"{name}.png").read_bytes() for name in ("full", "empty"))
    assert full.startswith(b"\x89PNG") and empty.startswith(b"\x89PNG") and len(full) > len(empty)


def test_final_metrics_are_the_last_of_training_and_of_evaluation():
    metrics = final_metrics([*HISTORY, {"step": 2, "train_runtime": 9.0}])
    assert metrics["loss"] == 4.0 and metrics["eval_loss"] == 4.5 and "train_runtime" not in metrics


def test_texts():
    assert progress_text(HISTORY[0]) == "loss 6.000, 50 tokens/s, 25% of peak FLOPs"
    assert progress_text({"loss": 1.0, "tokens_per_second": 2000.0}) == "loss 1.000, 2,000 tokens/s"
    assert evaluation_text(HISTORY[2]) == "validation loss 4.5000, perplexity 90.0000, bits per byte 2.2500"
    assert [duration_text(s) for s in (5, 65, 7500)] == ["5 s", "1 min 5 s", "2 h 5 min"]
    assert "perplexity 90.00" in summary_text("outputs/x", final_metrics(HISTORY))
    assert notable_fields({"hidden_size": 8, "decoder": {"hidden_size": 4}, "norm_eps": 1}) == {
        "hidden_size": 8,
        "decoder.hidden_size": 4,
    }


def test_samples_that_hold_fences_are_fenced_by_longer_ones():
    text = samples_text([Sample("```\ncode\n```", "x")])
    assert "````text\n```\ncode\n```\n````" in text
