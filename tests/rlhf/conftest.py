"""What all tests of PPO share."""

import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent))  # for toys


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Drawing takes longer than training these models."""
    monkeypatch.setattr("hf_llm.rlhf.plots.plot_history", lambda *args, **kwargs: None)
