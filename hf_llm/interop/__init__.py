"""Exchange with the native checkpoints of the architectures that the core covers."""

import logging
from pathlib import Path

from transformers import PreTrainedModel

from .configurations import InteropError, to_native_config
from .convert import export_model, head_name, import_model
from .families import FAMILIES
from .family import Family
from .loading import check_not_quantised, find_family, load_native
from .placement import PLACEMENT, place


__all__ = ["FAMILIES", "Family", "InteropError", "from_native", "nearest_family", "to_native"]

logger = logging.getLogger(__name__)


def from_native(model: PreTrainedModel | str | Path, **kwargs) -> PreTrainedModel:
    """
    Our model with the weights of a native one.

    Args:
        model: a transformers model (tensors of the same layout are then shared with it), or a path or Hub id.
        kwargs: for a path or id, as in `from_pretrained` (dtype, revision, ...; device_map with max_memory,
            offload_folder and offload_buffers, where a map names modules of our model).

    Returns:
        The stack and head that correspond to the native class, with its generation configuration.

    Raises:
        InteropError: unknown architecture (the nearest known ones are named), a feature that the core has no field
            for, missing or unexpected weights, shapes that disagree, a damaged file, pickles, quantised weights.
    """
    owned = not isinstance(model, PreTrainedModel)
    placement = {name: kwargs.pop(name) for name in PLACEMENT if owned and name in kwargs}
    if owned:
        model = load_native(str(model), **kwargs)
    family = find_family(model.config.model_type)
    check_not_quantised(type(model).__name__, getattr(model.config, "quantization_config", None))
    imported, unused = import_model(family, model, consume=owned)
    if unused:
        logger.warning("Not imported, for the core has no place for them: %s", ", ".join(unused))
    imported.config._name_or_path = model.name_or_path  # where TRL looks for the tokenizer
    imported.name_or_path = None  # where PEFT would look for a model of our class
    place(imported, **placement)
    return imported


def to_native(model: PreTrainedModel, family: str | None = None) -> PreTrainedModel:
    """
    The native model of one of ours.

    Args:
        model: one of the models of this package.
        family: transformers' `model_type` to export to; by default what `nearest_family` says.

    Raises:
        InteropError: the family cannot express the model; the message names each field.
    """
    return export_model(target_family(model, family), model)


def target_family(model: PreTrainedModel, name: str | None = None) -> Family:
    """The family of that name, or the nearest that can express a model of ours. Raises InteropError."""
    name = nearest_family(model.config, head_name(model)) if name is None else name
    return find_family(name)


def nearest_family(config, head: str | None = None) -> str:
    """The `model_type` of the native architecture that a configuration of ours is exported to.

    It is the one that the model was imported from, if it can still express it, else the first, in the order of the
    tables, that can.

    head: the head that the model has ("ForCausalLM", ...), if only what this one reads is to count.

    Raises InteropError with the reasons of those that come closest.
    """
    stack = config.model_type.removeprefix("hf_llm_")
    reasons = []
    origin = getattr(config, "native_family", None)
    for family in sorted(FAMILIES.values(), key=lambda family: family.name != origin):
        if family.stack != stack or head not in (None, "Model", *family.heads):
            continue
        try:
            to_native_config(family, config, head)
        except InteropError as error:
            reasons.append(str(error))
        else:
            return family.name
    closest = sorted(reasons, key=len)[:5]  # the fewer fields, the shorter
    own = [f"`{choice}` is a variant of {file}, which none has." for choice, file in config.own_choices.items()]
    raise InteropError("\n".join(("No native architecture can express this model. The closest:", *own, *closest)))
