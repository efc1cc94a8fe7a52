"""PEFT adapters on a model: opened, and merged into its weights where PEFT's own merge gives another model."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import peft
import torch
import transformers
from packaging.version import Version
from peft import PeftConfig, PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from ..models.compat import CACHE


logger = logging.getLogger(__name__)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Leave out warnings of PEFT that a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")  # of norms, which LN-tuning copies whole
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # which PEFT asks of a model
        warnings.filterwarnings("ignore", "The following rank_pattern keys")  # of AdaLoRA's, which PEFT wrote itself
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
        yield


def check_generates_behind_virtual_tokens(what: str) -> None:
    """Raise ValueError where PEFT passes the cache by a name that transformers has dropped."""
    if CACHE != "past_key_values" and Version(peft.__version__) < Version("0.22"):
        raise ValueError(
            f"{what}: behind virtual tokens, PEFT {peft.__version__} generates wrong text with transformers "
            f"{transformers.__version__}, which asks for PEFT 0.22: use lora, or transformers 5.23"
        )


def merge_adapter(model: PreTrainedModel, path: str | Path) -> PreTrainedModel:
    """
    `model` with the weights of an adapter added to its own.

    Raises:
        ValueError: `path` is no adapter, or one for another base.
    """
    return merge(open_adapter(model, path))


def merge(adapted: PeftModel) -> PreTrainedModel:
    """
    The base with the adapter's weights in its own: it computes what base and adapter compute, and is trainable.

    PEFT's `merge_and_unload` adds the adapters of tied weights to the one weight that they share. Here each module
    gets a weight of its own before the merge. Those that are equal afterwards are tied again; for the others the field
    of the configuration that ties them (`tie_word_embeddings`, `share_embeddings`, `share_layers`) becomes False,
    which a warning says.

    Raises:
        ValueError: the adapter is one of virtual tokens, which no weight can stand for, leaves out a bias of the base,
            or changes one of two weights that the architecture always ties; or the base is quantised.
    """
    model, config = adapted.get_base_model(), adapted.active_peft_config
    if config.is_prompt_learning:
        raise ValueError(
            f"an adapter of virtual tokens ({config.peft_type.value}) cannot be merged: open it by peft.PeftModel"
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "the base is quantised, and would round the sum of its weights and the adapter's: merge into "
            "its checkpoint opened without quantisation (hf_llm.surgery.adapters.merge_adapter)"
        )
    check_biases(adapted)
    tied = model.config.tie_word_embeddings
    one_adapter = {f"{name}.weight" for name in getattr(config, "target_modules_to_tie", None) or ()}
    _separate_parameters(model)
    with without_noise():
        merged = adapted.merge_and_unload()
    for name, module in list(merged.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # LN-tuning leaves them where they are
            merged.set_submodule(name, module.modules_to_save[module.active_adapter])
    merged.config.tie_word_embeddings = tied
    ties = merged.get_expanded_tied_weights_keys(all_submodels=True)
    apart = {name for name, source in ties.items() if not _are_equal(merged, name, source, name in one_adapter)}
    _untie(merged, apart)
    merged.tie_weights()
    return merged.requires_grad_(True)


def _separate_parameters(model: nn.Module) -> None:
    """Give each module a copy of its own of a parameter that another one has, too."""
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                module.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(parameter)


def _are_equal(model: PreTrainedModel, name: str, other: str, one_adapter: bool) -> bool:
    """Whether two weights are the same; up to rounding if they have one adapter, which PEFT adds in two ways."""
    weight, other_weight = model.get_parameter(name), model.get_parameter(other)
    if torch.equal(weight, other_weight):
        return True
    return one_adapter and torch.allclose(weight, other_weight, rtol=2 * torch.finfo(weight.dtype).eps, atol=1e-6)


def _untie(model: PreTrainedModel, names: set[str]) -> None:
    """Set the fields to False that tie these weights. Raises ValueError where none does."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]

    def still_tied() -> set[str]:
        return names & model.get_expanded_tied_weights_keys(all_submodels=True).keys()

    for tying in ("tie_word_embeddings", "share_embeddings", "share_layers"):
        before = still_tied()
        configs = {id(part.config): part.config for part in parts if getattr(part.config, tying, False)}.values()
        for config in configs:
            setattr(config, tying, False)
        if parted := before - still_tied():
            logger.warning("merged: %s no longer tied, %s = False", ", ".join(sorted(parted)), tying)
        else:
            for config in configs:
                setattr(config, tying, True)
    if still_tied():
        raise ValueError(
            f"the adapter changes one of two weights that a {type(model).__name__} always ties "
            f"({', '.join(sorted(still_tied()))}): it cannot be merged, open it by peft.PeftModel"
        )
    for part in parts:
        part.all_tied_weights_keys = part.get_expanded_tied_weights_keys(all_submodels=True)


def check_biases(adapted: PeftModel) -> None:
    """Raise ValueError where PEFT computes a head without its bias."""
    for name, module in adapted.named_modules():
        if isinstance(module, TrainableTokensLayer):
            base, copies = module.base_layer, [None]
        elif isinstance(module, ModulesToSaveWrapper):
            base, copies = module.original_module, module.modules_to_save.values()
        else:
            continue
        has_bias = isinstance(base, nn.Linear) and base.bias is not None
        if has_bias and any(getattr(saved, "bias", None) is None for saved in copies):
            head = name.removeprefix("base_model.model.").removesuffix(".token_adapter")
            raise ValueError(
                f"PEFT leaves out the bias of {head}, which is tied to the embeddings: adapt them by target_modules, "
                "not by modules_to_save or trainable tokens"
            )


def open_adapter(model: PreTrainedModel, path: str | Path, adapter_name: str = "default") -> PeftModel:
    """
    `model` with the adapter at `path`, which must have been trained on the same architecture.

    Raises:
        ValueError: `path` is no adapter, or one for another base: shapes or names of weights disagree.
    """
    try:
        config = PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"model.adapter = {str(path)!r} is no PEFT adapter: {error}") from error
    if config.is_prompt_learning:
        check_generates_behind_virtual_tokens(f"model.adapter = {str(path)!r}")
    base = config.base_model_name_or_path
    if base and model.name_or_path and Path(base).resolve() != Path(model.name_or_path).resolve():
        logger.warning("the adapter %s was trained on %s, not on %s", path, base, model.name_or_path)
    try:
        with without_noise():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            return PeftModel.from_pretrained(model, str(path), adapter_name=adapter_name, config=config)
    except (RuntimeError, ValueError, UserWarning, KeyError, AttributeError) as error:
        raise ValueError(f"model.adapter = {str(path)!r} is for another base, {base}: {error}") from error
