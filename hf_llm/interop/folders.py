"""Exchange between folders: a checkpoint in, one out, with tokenizer, chat template and generation configuration."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from . import from_native, target_family
from .adapters import convert_adapter
from .configurations import InteropError
from .convert import export_model
from .loading import HUB_ARGUMENTS, load_strictly, read_config


# model_type ("": of all) -> fields that mlx-lm, CTranslate2 and others read, and what they are called here
REPEATED = {
    "": {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
    "gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    "qwen3_moe": {"num_experts": "num_local_experts", "head_dim": "head_dim"},
}
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")


def import_folder(source: str, destination: str | Path, **kwargs) -> PreTrainedModel:
    """Read the native checkpoint at a path or Hub id and write it to a new folder as one of ours.

    kwargs as in `from_pretrained`. The folder appears when it is complete, or not at all. Raises InteropError.
    """
    with _new_folder(destination) as folder:
        model = from_native(source, **kwargs)
        model.save_pretrained(folder)
        _carry_tokenizer(source, folder, **kwargs)
    return model


def export_folder(source: str, destination: str | Path, family: str | None = None, **kwargs) -> PreTrainedModel:
    """Read one of our checkpoints and write it to a new folder as a native one, of `family` or of the nearest.

    kwargs as in `from_pretrained`. The folder appears when it is complete, or not at all. Raises InteropError.
    """
    with _new_folder(destination) as folder:
        model = _load_ours(source, **kwargs)
        native = export_model(target_family(model, family), model, consume=True)
        native.save_pretrained(folder)
        _repeat_fields(folder / "config.json")
        _carry_tokenizer(source, folder, **kwargs)
    return native


def _repeat_fields(path: Path) -> None:
    """Write fields of a native config.json a second time, under the names and in the places that other engines read
    and transformers 5 has left (see `REPEATED`); transformers takes them for what they are."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}  # a dict for each kind of layers where these differ: then left alone
    known = config | {name: value for name, value in rope.items() if not isinstance(value, dict)}
    if "num_attention_heads" in known and "hidden_size" in known:
        known.setdefault("head_dim", known["hidden_size"] // known["num_attention_heads"])
    for name, source in (REPEATED[""] | REPEATED.get(config["model_type"], {})).items():
        if source in known:
            config.setdefault(name, known[source])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def move_adapter(source: str, destination: str | Path, base: str) -> None:
    """
    Write a PEFT adapter to a new folder for the same base model on the other side.

    base: our import of the native model that the adapter was trained on; or, for an adapter of one of our models, the
        native export. The folder appears when it is complete, or not at all. Raises InteropError.
    """
    with _new_folder(destination) as folder:
        convert_adapter(source, folder, base)
        _carry_tokenizer(source, folder)


def merge_folder(source: str, destination: str | Path, base: str | None = None) -> PreTrainedModel:
    """Write the base of a PEFT adapter, ours or native, to a new folder, with the adapter merged into its weights.

    Args:
        base: a path or Hub id, in place of the one that the adapter names.

    The folder appears when it is complete, or not at all.

    Raises:
        ValueError: no adapter is there, its base cannot be opened, or it cannot be merged (see `surgery.adapters`).
    """
    from ..surgery.adapters import merge_adapter  # needs PEFT

    note = cached_file(source, "adapter_config.json", _raise_exceptions_for_missing_entries=False)
    if note is None:
        raise InteropError(f"{source} is no PEFT adapter: it has no adapter_config.json.")
    base = base or json.loads(Path(note).read_text(encoding="utf-8"))["base_model_name_or_path"]
    with _new_folder(destination) as folder:
        named = (read_config(base).get("architectures") or ["AutoModel"])[0]
        model = merge_adapter(load_strictly(getattr(transformers, named), base), source)
        model.save_pretrained(folder)
        _carry_tokenizer(source, folder) or _carry_tokenizer(base, folder)
    return model


def _load_ours(source: str, **kwargs) -> PreTrainedModel:
    config = read_config(source, **kwargs)
    named = (config.get("architectures") or [""])[0]
    if not config["model_type"].startswith("hf_llm_") or not hasattr(transformers, named):
        raise InteropError(f"{source} is no checkpoint of hf_llm: `model_type={config['model_type']!r}`.")
    return load_strictly(getattr(transformers, named), source, **kwargs)


@contextmanager
def _new_folder(destination: str | Path) -> Iterator[Path]:
    """A folder beside `destination` that takes its place at the end, and is removed if something goes wrong."""
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InteropError(f"{destination} exists and is not empty: choose another destination.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _carry_tokenizer(source: str, folder: Path, **kwargs) -> bool:
    """The tokenizer with its chat template, if the checkpoint has one. Returns whether it has."""
    hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")}
    has_one = any(cached_file(source, name, **hub, **quiet) for name in TOKENIZER_FILES)
    if has_one:
        AutoTokenizer.from_pretrained(source, **hub).save_pretrained(folder)
    return has_one
