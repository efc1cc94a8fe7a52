"""What all tests of PPO share."""

import pytest


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Drawing takes longer than training these models."""
    monkeypatch.setattr("hf_llm.training.report.draw_figures", lambda *args, **kwargs: None)
