"""Settings and fixtures shared by all tests."""

import os


# Before torch and transformers are imported: one thread per process (two workers share the cores, and results do not
# depend on how many a machine has), no network, no progress bars.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from transformers import set_seed


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it in the same process."""
    set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
