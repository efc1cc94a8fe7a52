"""Open checkpoints strictly: whatever is wrong with one is an `InteropError` that says what, and what to do."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from ..models.base import check_shards
from .configurations import InteropError, to_our_config
from .convert import head_of, is_unused, native_class
from .families import FAMILIES
from .family import Family


PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")


def find_family(model_type: str) -> Family:
    """The family of a native `model_type`. Raises InteropError that names the nearest known ones."""
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=len(FAMILIES), cutoff=0.0)
        raise InteropError(f"model_type {model_type!r} is not known. Known, nearest first: {', '.join(near)}.")
    return FAMILIES[model_type]


def read_config(source: str, **kwargs) -> dict:
    """config.json of a checkpoint, checked for what no import can work without."""
    if not Path(source).is_dir() and (Path(source).is_absolute() or Path(source).exists()):
        raise InteropError(f"{source} is no folder: name the folder that has config.json, or a Hub id.")
    if Path(source).is_dir() and not (Path(source) / kwargs.get("subfolder", "") / "config.json").is_file():
        raise InteropError(f"{source} has no config.json: it is not a checkpoint of transformers.")
    hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
    config, _ = PreTrainedConfig.get_config_dict(source, **hub)
    if "model_type" not in config:
        raise InteropError(f"{source}: config.json has no `model_type`, so the architecture is not known.")
    return config


def load_native(source: str, **kwargs) -> PreTrainedModel:
    """The native model at a path or Hub id, in the class that its configuration names."""
    config = read_config(source, **kwargs)
    model_type = config["model_type"]
    if model_type.startswith("hf_llm_"):
        raise InteropError(f"{source} is a checkpoint of hf_llm already (`model_type={model_type!r}`): export it.")
    family = find_family(model_type)
    if not getattr(kwargs.get("quantization_config"), "dequantize", False):
        check_not_quantised(source, config.get("quantization_config"))
    hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
    to_our_config(family, AutoConfig.from_pretrained(source, **hub))  # before the weights are read
    return load_strictly(_class_of(family, config), source, family, **kwargs).eval()


def check_not_quantised(source: str, quantization) -> None:
    """Raise InteropError if a checkpoint is quantised: its tensors are not the weights of the architecture."""
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise InteropError(
            f"{source} is quantised ({getattr(method, 'value', method)}). Load it with transformers, take "
            "`model.dequantize()`, save that, and import the result; or pass a `quantization_config` with "
            "`dequantize=True`, where its method has that."
        )


def _class_of(family: Family, config: dict) -> type:
    """The class that a configuration names, else that of the family's first head."""
    named = (config.get("architectures") or [""])[0]
    if hasattr(transformers, named):
        return getattr(transformers, named)
    return native_class(family, head_of(named, family) if named else next(iter(family.heads), "Model"))


def load_strictly(model_class: type, source: str, family: Family | None = None, **kwargs) -> PreTrainedModel:
    """
    `model_class.from_pretrained`, but every weight must be there, in its shape, in a file that is whole and no pickle.

    family: weights that it lists as unused may be left over.
    """
    _check_files(source, kwargs.get("subfolder", ""), kwargs.get("gguf_file"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the report of what does not fit is given as an error below
    try:
        model, found = model_class.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except SafetensorError as error:
        raise InteropError(
            f"{source}: a safetensors file is damaged or cut short ({error}). Fetch it again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    extra = [name for name in found["unexpected_keys"] if family is None or not is_unused(family, name)]
    problems = {
        "lacks weights": sorted(found["missing_keys"]),
        "has weights that the architecture does not": sorted(extra),
        "has weights of other shapes than the configuration says": _shapes(found["mismatched_keys"]),
    }
    problems = [f"{what}: {_shortened(names)}" for what, names in problems.items() if names]
    if problems:
        raise InteropError(f"{source}, read as {model_class.__name__}, {'; '.join(problems)}.")
    return model


def _check_files(source: str, subfolder: str, gguf_file: str | None) -> None:
    folder = Path(source) / subfolder
    if not folder.is_dir() or gguf_file:
        return
    if any(folder.glob("*.safetensors")):
        _check_index(folder)
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InteropError(
            f"{source} has its weights only in {_shortened(pickles)}, a format that can run code when it is opened. "
            "If you trust its origin, convert it: open it with transformers (`AutoModel...from_pretrained`) and "
            "`save_pretrained` it, which writes safetensors."
        )
    raise InteropError(f"{source} has no weights (no *.safetensors).")


def _check_index(folder: Path) -> None:
    """If there is an index, it can be read, and every file that it names is there and in the folder."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return
    try:
        check_shards(folder)
    except ValueError as error:
        raise InteropError(str(error)) from error
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError) as error:
        raise InteropError(f"{index} is damaged ({error}). Fetch it again.") from error
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise InteropError(f"{folder} lacks {_shortened(absent)}, which {index.name} names. Fetch it again.")


def _shapes(mismatched: Iterable[tuple]) -> list[str]:
    return sorted(f"{name} {tuple(found)} instead of {tuple(expected)}" for name, found, expected in mismatched)


def _shortened(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
