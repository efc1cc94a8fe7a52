"""Which checkpoint a run goes on from, and whether it may."""

import json
import logging
from pathlib import Path

from transformers import PreTrainedConfig

from ..manifest import MANIFEST, defect
from .checkpoints import checkpoint_step, last_good_checkpoint, list_checkpoints
from .saving import RUN_CONFIG


logger = logging.getLogger(__name__)

# what may differ between the runs before and after an interruption without a word
_FREE = (
    "output_dir",
    "resume",
    "from_decoder",
    "word_vectors",
    "cpu_threads",
    "samples",
    "samples_while_training",
    "data.num_proc",
    "data.cache_dir",
    "data.validation_rows",
)
# what must not: with these the order of samples, the optimizer's state or the weights would mean something else
_FIXED = (
    "model",
    "tokenizer",
    "data",
    "task",
    "objective",
    "peft",
    "seed",
    "training.optimizer",
    "global_batch_size",
    "fingerprint",
)
# fields of a saved configuration that say nothing about the architecture
_INCIDENTAL = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "attn_implementation",
    "dtype",
    "hf_llm_version",
    "transformers_version",
    "use_cache",
)


def find_checkpoint(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint that `resume` ("auto", "never" or a path) means, or None for a fresh start.

    Raises:
        ValueError: "never" although there are checkpoints, a path that is no whole checkpoint, or one that is
            not the newest.
    """
    existing = list_checkpoints(run_dir)
    if resume == "auto":
        good = last_good_checkpoint(run_dir)
        if good is None and existing:
            logger.warning("no whole checkpoint in %s: the run starts afresh", run_dir)
        return good
    if resume == "never":
        if existing:
            raise ValueError(
                f"resume = 'never', but output_dir = {run_dir} has {existing[-1].name}: "
                "choose another output_dir, delete the checkpoints, or use resume: auto"
            )
        return None
    chosen = Path(resume)
    if not (chosen / MANIFEST).is_file():
        raise ValueError(f"resume = {resume!r} is neither 'auto', 'never' nor a checkpoint directory")
    if (reason := defect(chosen)) is not None:
        raise ValueError(f"resume = {resume!r} is a torn checkpoint: {reason}")
    own = chosen.resolve().parent == Path(run_dir).resolve()
    newer = [c for c in existing if not own or checkpoint_step(c) > checkpoint_step(chosen)]
    if newer:
        raise ValueError(
            f"resume = {resume!r}, but output_dir = {run_dir} has {newer[-1].name}, which the next run would take for "
            "the newest: delete it or choose another output_dir"
        )
    return chosen


def check_same_run(checkpoint: Path, facts: dict) -> None:
    """Check that a checkpoint belongs to the run that `facts` describes, or a part of its facts.

    Raises:
        ValueError: model, data, objective, seed, optimizer or batch size differ; all differences are named.
    """
    saved = json.loads((checkpoint / RUN_CONFIG).read_text(encoding="utf-8"))
    saved = {name: value for name, value in saved.items() if name in facts}
    different = [d for d in differences(saved, facts) if not _below(d[0], _FREE)]
    fatal = [d for d in different if _below(d[0], _FIXED)]
    if fatal:
        raise ValueError(
            f"{checkpoint} is of another run: {_listed(fatal)}. Choose another output_dir, or restore those settings"
        )
    if different:
        logger.warning("resuming %s with changed settings: %s", checkpoint, _listed(different))


def check_architecture(checkpoint: Path, saved: dict, config: PreTrainedConfig) -> None:
    """Check that the configuration `saved` with a checkpoint describes the same architecture as `config`.

    Raises:
        ValueError: naming every field that differs.
    """
    different = differences(_architecture(saved), _architecture(config.to_dict()))
    if different:
        raise ValueError(f"{checkpoint} is a checkpoint of another architecture: {_listed(different)}")


def _architecture(config: dict) -> dict:
    return {
        key: _architecture(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _INCIDENTAL
    }


def differences(saved: dict, current: dict, prefix: str = "") -> list[tuple[str, object, object]]:
    """`(dotted key, saved value, current value)` for every leaf that differs; a missing one counts as None."""
    found = []
    for key in {**saved, **current}:
        old, new = saved.get(key), current.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif json.dumps(old, sort_keys=True, default=str) != json.dumps(new, sort_keys=True, default=str):
            found.append((f"{prefix}{key}", old, new))
    return found


def _below(key: str, roots: tuple[str, ...]) -> bool:
    return any(key == root or key.startswith(root + ".") for root in roots)


def _listed(different: list[tuple[str, object, object]]) -> str:
    return "; ".join(f"{key} is {old!r} there and {new!r} here" for key, old, new in different)
