"""Open what a run starts from: a checkpoint of ours or a native one, with the head that the job needs."""

import dataclasses
import logging
from collections.abc import Iterable

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hf_llm.data.checkpoints import checkpoint_path
from hf_llm.data.checks import check_vocabulary
from hf_llm.interop import from_native
from hf_llm.interop.configurations import to_our_config
from hf_llm.interop.families import load_families
from hf_llm.interop.loading import find_family
from hf_llm.registration import NAME_TABLES
from hf_llm.training.settings import check_keys

from .config import ModelSection


logger = logging.getLogger(__name__)

_TABLE_POSITIONS = ("learned", "sinusoidal")  # kinds of positions that end where their table ends


def open_tokenizer(section: ModelSection, **options) -> PreTrainedTokenizerBase:
    """The tokenizer of the run, with a token to pad with.

    Args:
        options: as in `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: there is none.
    """
    path = checkpoint_path(section.tokenizer or section.path)
    try:
        revision = None if section.tokenizer else section.revision
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model: no tokenizer at {path}: {error}. Name one as model.tokenizer") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"model: the tokenizer at {path} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_model(
    section: ModelSection, auto_class: type, tokenizer: PreTrainedTokenizerBase | None = None, **fields
) -> PreTrainedModel:
    """
    The run's model.

    Args:
        auto_class: of transformers, says which head is wanted. One that the checkpoint lacks is newly initialised,
            which a warning says.
        tokenizer: must fit into the model's vocabulary; gives it the padding token that it lacks.
        fields: of its configuration, as the job decides them (`num_labels`, `id2label`, ...), over `section.fields`.

    Raises:
        ValueError: the path is no checkpoint, the stack has no such head, weights are missing beside those of a head,
            an unknown field, an adapter that does not fit.
    """
    path = checkpoint_path(section.path)
    fields = {**section.fields, **fields}
    options = {"dtype": getattr(torch, section.dtype), "attn_implementation": section.attn_implementation}
    config = _read_config(section)
    if config.model_type.startswith("hf_llm_"):
        model = _open_ours(path, auto_class, config, fields, revision=section.revision, **options)
    else:
        model = _import(path, auto_class, fields, revision=section.revision, **options)
    if section.adapter is not None:
        from .adapters import merge_adapter

        model = merge_adapter(model, section.adapter)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config.get_text_config(decoder=True).vocab_size)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _read_config(section: ModelSection) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(checkpoint_path(section.path), revision=section.revision)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path = {section.path!r} is no checkpoint: {error}") from error


def has_trained_head(section: ModelSection, auto_class: type) -> bool:
    """Whether the checkpoint was saved with the head that `auto_class` stands for. ValueError if it is none."""
    head = auto_class.__name__.removeprefix("AutoModel")
    names = {"ForCausalLM": ("ForCausalLM", "LMHeadModel"), "ForMaskedLM": ("ForMaskedLM", "ForPreTraining")}
    return any(name.endswith(names.get(head, head)) for name in _read_config(section).architectures or ())


def is_encoder_decoder(section: ModelSection) -> bool:
    """Whether the checkpoint is one, ours or native. ValueError if it is no checkpoint."""
    return _read_config(section).is_encoder_decoder


def open_config(section: ModelSection, auto_class: type) -> PreTrainedConfig:
    """The model's configuration as one of ours, before any weight is read.

    Raises:
        ValueError: the path is no checkpoint, cannot be imported, or the stack has no head for `auto_class`.
    """
    config = _read_config(section)
    if not config.model_type.startswith("hf_llm_"):
        config = to_our_config(find_family(config.model_type, load_families()), config)
    _head_class(auto_class, config)
    return _set_fields(config, section.fields)


def _head_class(auto_class: type, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Our class with the head that `auto_class` stands for. ValueError names the heads that the stack has."""
    mapping = auto_class._model_mapping
    if type(config) not in mapping:
        import transformers

        heads = [name for name in NAME_TABLES if type(config) in getattr(transformers, name)._model_mapping]
        raise ValueError(f"a {config.model_type} has no head for {auto_class.__name__}; it has: {', '.join(heads)}")
    return mapping[type(config)]


def _set_fields(config: PreTrainedConfig, fields: dict) -> PreTrainedConfig:
    """The configuration with some fields changed and checked."""
    known = {*config.to_dict(), *(f.name for f in dataclasses.fields(config)), "num_labels", "id2label", "label2id"}
    check_keys(fields, known, "model.fields")
    try:
        return type(config)(**{**config.to_dict(), **fields})
    except ValueError as error:
        raise ValueError(f"model.fields: {error}") from error


def _open_ours(path: str, auto_class: type, config: PreTrainedConfig, fields: dict, **options) -> PreTrainedModel:
    model_class = _head_class(auto_class, config)
    config = _set_fields(config, fields)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is said below, in one line
    try:
        model, found = model_class.from_pretrained(
            path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    new = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    _report_new(path, model, new)
    return model


def _import(path: str, auto_class: type, fields: dict, dtype, attn_implementation, revision) -> PreTrainedModel:
    """The native model in our class; its body under a new head, where it has another one."""
    imported = from_native(path, dtype=dtype, revision=revision)
    model_class = _head_class(auto_class, imported.config)
    config = _set_fields(imported.config, fields)
    config._attn_implementation = attn_implementation
    model = model_class(config).to(dtype)
    body = imported.base_model.state_dict()
    target = model.base_model
    missing, unexpected = target.load_state_dict(body, strict=False)
    if missing or unexpected:
        raise ValueError(f"model.fields: {path} does not have the weights of this configuration: {sorted(missing)}")
    if target is not model:
        head = {name: value for name, value in imported.state_dict().items() if name in _head_weights(model)}
        fits = {n: v for n, v in head.items() if v.shape == model.state_dict()[n].shape}
        model.load_state_dict(fits, strict=False)
        _report_new(path, model, sorted(_head_weights(model) - set(fits)))
    if model.can_generate():
        model.generation_config = imported.generation_config
    model.config._name_or_path = model.name_or_path = path
    return model.eval()


def _head_weights(model: PreTrainedModel) -> set[str]:
    """Names of the weights that are not the body's, nor tied to it."""
    prefix, tied = f"{model.base_model_prefix}.", set(model.all_tied_weights_keys)
    return {name for name in model.state_dict() if not name.startswith(prefix) and name not in tied}


def _report_new(path: str, model: PreTrainedModel, new: list[str]) -> None:
    """Warn of a head that starts from nothing; a body that does is an error."""
    head = _head_weights(model)
    if body := [name for name in new if name not in head]:
        raise ValueError(f"model.path: {path} lacks weights of a {type(model).__name__}: {', '.join(body[:8])}")
    if new:
        logger.warning("%s has no such head: %s newly initialised, it must be trained", path, _and(new))


def _and(names: Iterable[str]) -> str:
    names = list(names)
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def is_complete_checkpoint(section: ModelSection, model: PreTrainedModel) -> bool:
    """Whether `section.path` opens as exactly this model, classes included, so that an adapter can name it as its
    base."""
    config = _read_config(section)
    same_class = (config.architectures or [None])[0] == type(model).__name__
    same_head = (config.id2label, config.problem_type) == (model.config.id2label, model.config.problem_type)
    changed = section.fields or section.adapter is not None or section.revision is not None
    return same_class and same_head and not changed


def text_limit(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest text, in tokens, that the model can read, or None if nothing ends."""
    stacks = [getattr(config, name, config) for name in ("encoder", "decoder")]
    ends = [s for s in stacks if getattr(s, "position_embedding", None) in _TABLE_POSITIONS]  # one of ours
    limits = [stack.max_position_embeddings for stack in ends]
    if tokenizer.model_max_length < 1e9:  # transformers' way of saying that there is no limit is 1e30
        limits.append(tokenizer.model_max_length)
    return min(limits, default=None)
