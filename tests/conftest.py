"""Settings and fixtures shared by all tests."""

import io
import os
import pickle


# Before torch and transformers are imported: one thread per process (two workers share the cores, and results do not
# depend on how many a machine has), no network, no progress bars.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from transformers import Trainer, set_seed


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it in the same process."""
    set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class WorkerPickler(pickle.Pickler):
    """What a spawned worker of a loader receives: data and how to make batches of it, never a model."""

    def reducer_override(self, value):
        assert not isinstance(value, torch.nn.Module), f"workers would get a copy of {type(value).__name__}"
        return NotImplemented


@pytest.fixture(autouse=True)
def workers_can_be_spawned(monkeypatch):
    """Whatever a test trains: under `spawn` (macOS, Windows) workers could load its data."""
    original = Trainer.get_train_dataloader

    def get_train_dataloader(self):
        loader = original(self)
        if self.args.dataloader_num_workers or not isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            WorkerPickler(io.BytesIO()).dump((self.train_dataset, self.data_collator))
        return loader

    monkeypatch.setattr(Trainer, "get_train_dataloader", get_train_dataloader)
