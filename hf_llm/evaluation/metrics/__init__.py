"""Metrics as modules of the `evaluate` library that open without the Hub; names and results are those of the Hub's."""

import importlib
import sys
from pathlib import Path


_FOLDER = Path(__file__).parent
METRICS = tuple(sorted(path.stem for path in _FOLDER.glob("*/*.py") if path.stem == path.parent.name))


def load_metric(name: str, **kwargs):
    """A metric, ready for `add_batch` and `compute`.

    Args:
        name: one of `METRICS`, a folder that holds a module, or (online) a metric of the Hub as `user/name`.
        kwargs: as in `evaluate.load`. Examples are kept in memory unless several processes share the metric.

    Returns:
        `evaluate.EvaluationModule`

    Raises:
        ValueError: there is no such metric.
    """
    evaluate = _library()
    if name in METRICS:
        name = str(_FOLDER / name)
    elif "/" not in name and not Path(name).exists():
        raise ValueError(f"metric {name!r} is unknown; legal: {', '.join(METRICS)}, a folder, or user/name on the Hub")
    return evaluate.load(name, **{"keep_in_memory": kwargs.get("num_process", 1) == 1, **kwargs})


def _library():
    """The library `evaluate`. A script's folder is first on the path, and recipes/ has an evaluate.py of its own."""
    path = sys.path[:]
    sys.path[:] = [folder for folder in path if not Path(folder, "evaluate.py").is_file()]
    try:
        return importlib.import_module("evaluate")
    finally:
        sys.path[:] = path
