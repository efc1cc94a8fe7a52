"""What all tests of PPO share."""

import pytest


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Drawing takes longer than training these models."""
    monkeypatch.setattr("hf_llm.rlhf.plots.plot_history", lambda *args, **kwargs: None)
