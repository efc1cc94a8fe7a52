"""Settings and fixtures shared by all tests."""

import io
import os
import pickle
from pathlib import Path


# Before torch and transformers are imported: one thread per process (two workers share the cores, and results do not
# depend on how many a machine has), no network, no progress bars.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from matplotlib.figure import Figure
from transformers import Trainer, set_seed


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it in the same process."""
    set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def pictures_are_rendered_once():
    """Every picture is drawn, and the first of each file name rendered; later ones get its bytes, since laying out and
    rendering the pictures of a tiny run takes longer than training it."""
    rendered, savefig = {}, Figure.savefig

    def save(figure, target, **options):
        name = Path(target).name if isinstance(target, (str, Path)) else None
        if name in rendered:
            Path(target).write_bytes(rendered[name])
            return
        savefig(figure, target, **options)
        if name is not None:
            rendered[name] = Path(target).read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


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
