"""PEFT adapters between a native model and its import: LoRA (rank-stabilised, DoRA) and IA3, with the modules saved
beside them.

An adapter is converted by its files alone, with the tables of its base's family: no weights of a model are read. Where
the native side has one matrix for several of ours (GPT-2's `c_attn`, Phi-3's `qkv_proj`), its LoRA is split exactly:
every part has the same A and its own rows of B. The way back needs that the parts still have one A.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from . import convert
from .configurations import CONFIGS, InteropError, to_native_config, to_our_config
from .convert import Entry
from .families import load_families
from .loading import find_family
from .ops import Transpose, rename
from .weights import empty


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# One tensor of an adapter: the module that it adapts, and what it is of it.
PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|lora_magnitude_vector\.weight|ia3_l)"
)
SHARED_PARTS = ("lora_A.weight", "lora_embedding_A")  # speak of a module's inputs; the others, of its outputs
HEAD_OF_TASK = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForConditionalGeneration",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "Model",
}
# Fields of an adapter's configuration that speak of modules in other ways, or change the base: what they must be.
REQUIRED = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
}
# Fields that chose the modules, which are named one by one in what is written.
CHOICES = ("layers_to_transform", "layers_pattern", "exclude_modules", "revision", "auto_mapping")


class Sides(NamedTuple):
    """A base model on both sides, without weights, and which weights are which."""

    source: PreTrainedModel
    target: PreTrainedModel
    entries: list[Entry]
    config: object  # ours
    to_ours: bool


def is_adapter(source: str | Path) -> bool:
    """Whether a local folder holds a PEFT adapter."""
    return (Path(source) / CONFIG).is_file()


def convert_adapter(source: str | Path, destination: str | Path, base: str | Path) -> dict:
    """
    Write an adapter into `destination`, an empty folder, for the same base on the other side.

    Args:
        source: the adapter, a folder or Hub id.
        base: the base model that the converted adapter is for: one of ours for an adapter of a native model, and the
            other way round. Only its configuration is read.

    Returns:
        The configuration that was written.

    Raises:
        InteropError: a kind of adapter or a field that cannot be moved, or a module without a counterpart; all named.
    """
    config = json.loads(_file(source, CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") not in ("LORA", "IA3"):
        raise InteropError(f"{source} is a {config.get('peft_type')} adapter: only LORA and IA3 correspond.")
    for name, legal in REQUIRED.items():
        if config.get(name, legal[0]) not in legal:
            raise InteropError(f"{source}: `{name}={config[name]!r}` cannot be moved; legal: {legal}.")
    sides = _sides(base, config.get("task_type"))
    state = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(_file(source, WEIGHTS)).items()}
    converted, modules = _convert_state(sides, state)
    save_file({PREFIX + n: t for n, t in converted.items()}, Path(destination) / WEIGHTS, metadata={"format": "pt"})
    config = _convert_config(sides, config, modules) | {"base_model_name_or_path": str(base)}
    (Path(destination) / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    return config


def _file(source: str | Path, name: str) -> Path:
    try:
        return Path(cached_file(str(source), name))
    except OSError as error:
        raise InteropError(f"{source} has no {name}, and is no adapter that can be moved ({error}).") from error


def _sides(base: str | Path, task: str | None) -> Sides:
    from . import nearest_family

    given = AutoConfig.from_pretrained(base)
    ours = given.model_type.startswith("hf_llm_")
    if ours:
        head = HEAD_OF_TASK.get(task) or _head(given, given.model_type)
        family = find_family(nearest_family(given, head), load_families())
        native_config, our_config = to_native_config(family, given, head), given
    else:
        family = find_family(given.model_type, load_families())
        head = HEAD_OF_TASK.get(task) or convert.head_of(given.architectures[0], family)
        native_config, our_config = given, to_our_config(family, given)
    with torch.device("meta"):
        native = empty(convert.native_class(family, head, native_config), native_config)
        our = empty(convert.our_class(family, head), our_config)
    entries = convert.plan(family, head, our.state_dict(), convert.base_prefix(native), our_config)
    return Sides(native, our, entries, our_config, True) if ours else Sides(our, native, entries, our_config, False)


def _head(config, model_type: str) -> str:
    (stack,) = (stack for stack, config_class in CONFIGS.items() if config_class.model_type == model_type)
    prefix = CONFIGS[stack].__name__.removesuffix("Config")
    return (config.architectures or [prefix + "Model"])[0].removeprefix(prefix)


def _convert_state(
    sides: Sides, state: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """The tensors on the other side, and for each adapted module its counterparts."""
    entry_of = {name: entry for entry in sides.entries for name in (entry.native if sides.to_ours else entry.ours)}
    jobs, unknown = {}, set()
    for name in state:
        match = PART.fullmatch(name)
        weight, part = (match["module"] + ".weight", match["part"]) if match else (name, None)
        if weight in entry_of:
            jobs[entry_of[weight], part] = None  # once for all its weights, in order
        else:
            unknown.add(match["module"] if match else name)
    if unknown:
        source, target = type(sides.source).__name__, type(sides.target).__name__
        raise InteropError(
            f"An adapter of a {source} for a {target}: no counterparts of {', '.join(sorted(unknown)[:8])}."
        )
    converted, modules = {}, {}
    for entry, part in jobs:
        sources, targets = (entry.native, entry.ours) if sides.to_ours else (entry.ours, entry.native)
        if part is not None:
            sources, targets = (_modules(names) for names in (sources, targets))
            modules |= {source: list(targets) for source in sources}
        suffix = f".{part}" if part else ""
        absent = [source for source in sources if source + suffix not in state]
        if absent:
            raise InteropError(
                f"{', '.join(targets)} is {', '.join(sources)} in one: without {part or 'weights'} of "
                f"{', '.join(absent)} the adapter cannot be moved."
            )
        tensors = _convert_part(sides, entry, part, [state[source + suffix] for source in sources], sources)
        converted |= {target + suffix: tensor.contiguous().clone() for target, tensor in zip(targets, tensors)}
    return converted, modules


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.removesuffix(".weight") for name in names)


def _convert_part(sides: Sides, entry: Entry, part: str | None, tensors: list[torch.Tensor], names) -> list:
    config = convert.stack_config(sides.config, entry.half)
    operate = entry.op.to_ours if sides.to_ours else entry.op.to_native
    if part is None:  # a module that was saved whole
        return operate(tensors, config)
    if entry.op is rename or isinstance(entry.op, Transpose):
        return tensors  # A and B are (rank, in) and (out, rank) for either layout of the weight
    rows = entry.op.of_rows()
    if rows is None:
        raise InteropError(f"{', '.join(names)} has a layout whose adapter cannot be moved.")
    if part in SHARED_PARTS or len(tensors[0]) == 1:  # or IA3's factors of the inputs
        if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):
            raise InteropError(
                f"{', '.join(names)} are one matrix on the native side, but each has a {part} of its own: only an "
                "adapter whose parts share theirs can be moved. Merge it into the model, and export that."
            )
        return [tensors[0]] * len(entry.ours if sides.to_ours else entry.native)
    return (rows.to_ours if sides.to_ours else rows.to_native)(tensors, config)


def _convert_config(sides: Sides, config: dict, modules: dict[str, list[str]]) -> dict:
    """The configuration on the other side, with its modules named as there."""
    config = config | {name: None for name in CHOICES if name in config}
    config["target_modules"] = _shortened(sides.target, [t for targets in modules.values() for t in targets])
    if config.get("feedforward_modules"):
        fed = [m for m in modules if _matches(m, config["feedforward_modules"])]
        config["feedforward_modules"] = _shortened(sides.target, [t for m in fed for t in modules[m]])
    if config.get("modules_to_save"):
        config["modules_to_save"] = _saved(sides, config["modules_to_save"])
    for field in ("rank_pattern", "alpha_pattern"):
        if patterns := config.get(field):
            config[field] = {
                target: value
                for module, targets in modules.items()
                for pattern, value in list(patterns.items())[::-1]
                if re.match(rf"(.*\.)?({pattern})$", module)
                for target in targets
            }
    adapted = {target for targets in modules.values() for target in targets}
    config["fan_in_fan_out"] = any(isinstance(sides.target.get_submodule(name), Conv1D) for name in adapted)
    return config


def _matches(module: str, names: Iterable[str] | str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith("." + name) for name in names)


def _saved(sides: Sides, names: list[str]) -> list[str]:
    """The modules of the other side whose weights are those of the modules that are saved whole."""
    found = {}
    for entry in sides.entries:
        sources, targets = (entry.native, entry.ours) if sides.to_ours else (entry.ours, entry.native)
        if any(re.search(rf"(^|\.){re.escape(name)}\.", source) for source in sources for name in names):
            found |= dict.fromkeys(target.rpartition(".")[0] for target in targets)
    return list(found)


def _shortened(model: PreTrainedModel, modules: list[str]) -> list[str]:
    """Module names by their last part alone, where it names no others of the model."""
    every = {name for name, module in model.named_modules() if getattr(module, "weight", None) is not None}
    short = {}
    for module in modules:
        leaf = module.rpartition(".")[2]
        alike = {name for name in every if name.rpartition(".")[2] == leaf}
        short[leaf if alike <= set(modules) else module] = None
    return sorted(short)
