"""PEFT adapters between a native model and its import: LoRA (rank-stabilised, DoRA) and IA3, with the modules saved
beside them.

An adapter is converted by its files alone, with the tables of its base's family: no weights of a model are read. Where
the native side has one matrix for several of ours (GPT-2's `c_attn`, Phi-3's `qkv_proj`), its LoRA is split exactly:
every part has the same A and its own rows of B. The way back needs that the parts still have one A.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from . import convert
from .configurations import InteropError, to_native_config, to_our_config
from .loading import find_family
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


class Pair(NamedTuple):
    """Weights of the source that are some of the target's, and how they are converted."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operate: Callable
    of_rows: Callable | None  # the same for outputs as rows
    config: PreTrainedConfig  # ours, of the stack that they belong to


class Sides(NamedTuple):
    """A base model on the adapter's side and on the other, without weights, and which weights are which."""

    source: PreTrainedModel
    target: PreTrainedModel
    pairs: list[Pair]


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
    to_ours = given.model_type.startswith("hf_llm_")
    if to_ours:
        prefix = type(given).__name__.removesuffix("Config")
        head = HEAD_OF_TASK.get(task) or (given.architectures or [prefix + "Model"])[0].removeprefix(prefix)
        family = find_family(nearest_family(given, head))
        native_config, our_config = to_native_config(family, given, head), given
    else:
        family = find_family(given.model_type)
        head = HEAD_OF_TASK.get(task) or convert.head_of(given.architectures[0], family)
        native_config, our_config = given, to_our_config(family, given)
    with torch.device("meta"):
        native = empty(convert.native_class(family, head), native_config)
        our = empty(convert.our_class(family, head), our_config)
    pairs = []
    for entry in convert.plan(family, head, our.state_dict(), convert.base_prefix(native), our_config):
        names, direction = (
            ((entry.native, entry.ours), "to_ours") if to_ours else ((entry.ours, entry.native), "to_native")
        )
        config = convert.stack_config(our_config, entry.half)
        pairs.append(Pair(*names, getattr(entry.op, direction), getattr(entry.op.rows, direction, None), config))
    return Sides(native, our, pairs) if to_ours else Sides(our, native, pairs)


def _convert_state(
    sides: Sides, state: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """The tensors on the other side, and for each adapted module its counterparts."""
    place_of = {name: place for place, pair in enumerate(sides.pairs) for name in pair.sources}
    jobs, unknown = {}, set()
    for name in state:
        match = PART.fullmatch(name)
        weight, part = (match["module"] + ".weight", match["part"]) if match else (name, None)
        if weight in place_of:
            jobs[place_of[weight], part] = None  # once for all its weights, in order
        else:
            unknown.add(match["module"] if match else name)
    if unknown:
        source, target = type(sides.source).__name__, type(sides.target).__name__
        raise InteropError(
            f"An adapter of a {source} for a {target}: no counterparts of {', '.join(sorted(unknown)[:8])}."
        )
    converted, modules = {}, {}
    for place, part in jobs:
        pair = sides.pairs[place]
        sources, targets = pair.sources, pair.targets
        if part is not None:
            sources, targets = ([name.removesuffix(".weight") for name in names] for names in (sources, targets))
            modules |= dict.fromkeys(sources, targets)
        suffix = f".{part}" if part else ""
        absent = [source for source in sources if source + suffix not in state]
        if absent:
            raise InteropError(
                f"{', '.join(targets)} is {', '.join(sources)} in one: without {part or 'weights'} of "
                f"{', '.join(absent)} the adapter cannot be moved."
            )
        tensors = _convert_part(pair, part, [state[source + suffix] for source in sources], ", ".join(sources))
        converted |= {target + suffix: tensor.contiguous().clone() for target, tensor in zip(targets, tensors)}
    return converted, modules


def _convert_part(pair: Pair, part: str | None, tensors: list[torch.Tensor], names: str) -> list[torch.Tensor]:
    if part is None:  # a module that was saved whole
        return pair.operate(tensors, pair.config)
    if pair.of_rows is None:
        raise InteropError(f"{names} has a layout whose adapter cannot be moved.")
    if part not in SHARED_PARTS and len(tensors[0]) > 1:  # else A, or IA3's factors of the inputs
        return pair.of_rows(tensors, pair.config)
    if any(not torch.equal(tensor, tensors[0]) for tensor in tensors):
        raise InteropError(
            f"{names} are one matrix on the native side, but each has a {part} of its own: only an adapter whose "
            "parts share theirs can be moved. Merge it into the model, and export that."
        )
    return [tensors[0]] * len(pair.targets)


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
    pattern = re.compile(rf"(^|\.)({'|'.join(map(re.escape, names))})\.")
    found = [pair.targets for pair in sides.pairs if any(map(pattern.search, pair.sources))]
    return list(dict.fromkeys(target.rpartition(".")[0] for targets in found for target in targets))


def _shortened(model: PreTrainedModel, modules: list[str]) -> list[str]:
    """Module names by their last part alone, where it names no others of the model."""
    every = {name for name, module in model.named_modules() if getattr(module, "weight", None) is not None}
    short = {}
    for module in modules:
        leaf = module.rpartition(".")[2]
        alike = {name for name in every if name.rpartition(".")[2] == leaf}
        short[leaf if alike <= set(modules) else module] = None
    return sorted(short)
