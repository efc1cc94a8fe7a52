"""Open what a run starts from: a checkpoint of ours or a native one, with the head that the job needs."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hf_llm.data.checkpoints import checkpoint_path
from hf_llm.data.checks import check_vocabulary
from hf_llm.interop import from_native
from hf_llm.interop.configurations import to_our_config
from hf_llm.interop.loading import find_family
from hf_llm.registration import NAME_TABLES
from hf_llm.surgery.depth import own_fields, silence_appended, with_depth, with_layers
from hf_llm.surgery.tokens import add_tokens

from .settings import check_keys, opening


logger = logging.getLogger(__name__)

TABLE_POSITIONS = ("learned", "sinusoidal")  # kinds of positions that end where their table ends


@dataclass
class ModelSection:
    """The checkpoint that a run starts from.

    Attributes:
        path: folder or Hub id of one of ours or of a native architecture, which is imported; or a name of
            `hf_llm.data.checkpoints.CHECKPOINTS`.
        revision: of a Hub id.
        tokenizer: folder or Hub id of the tokenizer, if it is not beside the model.
        adapter: a PEFT adapter for this checkpoint that is merged into it first (an SFT adapter before DPO, say).
        dtype: of the weights while training.
        attn_implementation: backend of the attention; chosen by the model if None.
        fields: fields of the model's configuration to change (`residual_dropout`, `rope_parameters`,
            `sliding_window`, `classifier_pooling`, ...; of an encoder-decoder's halves as `encoder: {...}`). With
            `num_hidden_layers`, the last layers are dropped, or layers appended that change nothing at first
            (`hf_llm.surgery.depth`).
        add_tokens: special tokens that the tokenizer is given ("<|im_start|>", "[MASK]", ...); embeddings grow, and
            the new ones start around the mean of the others (`resize_token_embeddings`).
    """

    path: str
    revision: str | None = None
    tokenizer: str | None = None
    adapter: str | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    fields: dict = field(default_factory=dict)
    add_tokens: list[str] = field(default_factory=list)

    def __post_init__(self):
        if not isinstance(getattr(torch, str(self.dtype), None), torch.dtype):
            raise ValueError(f"model.dtype = {self.dtype!r} is no dtype; legal: float32, bfloat16, float16")


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
    if section.add_tokens:
        add_tokens(tokenizer, section.add_tokens)
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
    config, dtype = _read_config(section), getattr(torch, section.dtype)
    source = {"pretrained_model_name_or_path": path, "revision": section.revision}
    imported = None
    if not config.model_type.startswith("hf_llm_"):
        imported = from_native(path, dtype=dtype, revision=section.revision)
        config = imported.config
        source = {"pretrained_model_name_or_path": None, "state_dict": imported.state_dict()}
    model_class = _head_class(auto_class, config)
    fields, depths = _split_depths(config, {**section.fields, **fields})
    with _quiet():  # what is missing is said below, in one line
        if depths:
            whole, found = model_class.from_pretrained(**source, config=config, dtype=dtype, output_loading_info=True)
            weights = {name: w for name, w in whole.state_dict().items() if name not in found["missing_keys"]}
            source = {"pretrained_model_name_or_path": None, "state_dict": with_layers(weights, config, depths)}
        model, found = model_class.from_pretrained(
            **source,
            config=_set_fields(config, fields, depths),
            dtype=dtype,
            attn_implementation=section.attn_implementation,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _report_new(path, model, sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}))
    if source["pretrained_model_name_or_path"] is None:
        if model.can_generate():
            model.generation_config = (imported or whole).generation_config
        model.config._name_or_path = model.name_or_path = path
    silence_appended(model, config)
    if section.adapter is not None:
        from hf_llm.surgery.adapters import merge_adapter  # needs PEFT

        model = merge_adapter(model, section.adapter)
    if tokenizer is not None:
        if (rows := _grown_vocabulary(section, model.config, tokenizer)) is not None:
            model.resize_token_embeddings(rows)
        check_vocabulary(tokenizer, model.config.get_text_config(decoder=True).vocab_size)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out transformers' warnings."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _read_config(section: ModelSection) -> PreTrainedConfig:
    with opening("model.path", section.path):
        return AutoConfig.from_pretrained(checkpoint_path(section.path), revision=section.revision)


def has_trained_head(section: ModelSection, auto_class: type) -> bool:
    """Whether the checkpoint was saved with the head that `auto_class` stands for. ValueError if it is none."""
    head = auto_class.__name__.removeprefix("AutoModel")
    names = {"ForCausalLM": ("ForCausalLM", "LMHeadModel"), "ForMaskedLM": ("ForMaskedLM", "ForPreTraining")}
    return any(name.endswith(names.get(head, head)) for name in _read_config(section).architectures or ())


def is_encoder_decoder(section: ModelSection) -> bool:
    """Whether the checkpoint is one, ours or native. ValueError if it is no checkpoint."""
    return _read_config(section).is_encoder_decoder


def open_config(
    section: ModelSection, auto_class: type | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedConfig:
    """The model's configuration as one of ours, with its `fields` changed, before any weight is read.

    Args:
        auto_class: of transformers, says which head is wanted, if any.
        tokenizer: the run's; where it has tokens that were added, the vocabulary is as large.

    Raises:
        ValueError: the path is no checkpoint, cannot be imported, or the stack has no head for `auto_class`.
    """
    config = _read_config(section)
    if not config.model_type.startswith("hf_llm_"):
        config = to_our_config(find_family(config.model_type), config)
    if auto_class is not None:
        _head_class(auto_class, config)
    config = _set_fields(config, *_split_depths(config, section.fields))
    if tokenizer is not None:
        if (rows := _grown_vocabulary(section, config, tokenizer)) is not None:
            for part in [getattr(config, name) for name in config.sub_configs] or [config]:
                part.vocab_size = rows
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
    return config


def _grown_vocabulary(
    section: ModelSection, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """Rows of embeddings that hold the tokens of `section.add_tokens`, a multiple of 64; None if they do already."""
    grows = section.add_tokens and len(tokenizer) > config.get_text_config(decoder=True).vocab_size
    return math.ceil(len(tokenizer) / 64) * 64 if grows else None


def _head_class(auto_class: type, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Our class with the head that `auto_class` stands for. ValueError names the heads that the stack has."""
    mapping = auto_class._model_mapping
    if type(config) not in mapping:
        import transformers

        heads = [name for name in NAME_TABLES if type(config) in getattr(transformers, name)._model_mapping]
        raise ValueError(
            f"model: a {config.model_type} has no head for {auto_class.__name__}; it has: {', '.join(heads)}"
        )
    return mapping[type(config)]


def _set_fields(config: PreTrainedConfig, fields: dict, depths: dict[str, int]) -> PreTrainedConfig:
    """The configuration with some fields and numbers of layers changed and checked."""
    saved, changed = own_fields(with_depth(config, depths)), {}
    known = {*saved, *(f.name for f in dataclasses.fields(config)), "num_labels", "id2label", "label2id"}
    check_keys(fields, known, "model.fields")
    for name, value in fields.items():
        changed[name] = {**saved[name], **value} if name in config.sub_configs else value
    try:
        return type(config)(**{**saved, **changed})
    except ValueError as error:
        raise ValueError(f"model.fields: {error}") from error


def _split_depths(config: PreTrainedConfig, fields: dict) -> tuple[dict, dict[str, int]]:
    """The fields without those that change a number of layers, and the new numbers (see `surgery.depth`)."""
    rest, depths = {}, {}
    for name, value in fields.items():
        if name in config.sub_configs and isinstance(value, dict):
            value, inner = _split_depths(getattr(config, name), value)
            if inner:
                depths[name] = inner[""]
        if name == "num_hidden_layers" and not config.sub_configs:
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"model.fields.num_hidden_layers = {value!r} must be a whole number, at least 1")
            if value != config.num_hidden_layers:
                depths[""] = value
        else:
            rest[name] = value
    return rest, depths


def _report_new(path: str, model: PreTrainedModel, new: list[str]) -> None:
    """Warn of a head that starts from nothing; a body that does is an error."""
    prefix, tied = f"{model.base_model_prefix}.", set(model.all_tied_weights_keys)
    of_body = [name for name in new if name.startswith(prefix) or model.base_model is model or name in tied]
    if of_body:
        raise ValueError(f"model.path: {path} lacks weights of a {type(model).__name__}: {', '.join(of_body[:8])}")
    if new:
        are = "is" if len(new) == 1 else "are"
        logger.warning("%s has no such head: %s %s newly initialised, it must be trained", path, ", ".join(new), are)


def is_complete_checkpoint(section: ModelSection, model: PreTrainedModel) -> bool:
    """Whether `section.path` opens as exactly this model, classes included, so that an adapter can name it as its
    base."""
    config = _read_config(section)
    same_class = (config.architectures or [None])[0] == type(model).__name__
    same_head = (config.id2label, config.problem_type) == (model.config.id2label, model.config.problem_type)
    changed = section.fields or section.add_tokens or section.adapter is not None or section.revision is not None
    return same_class and same_head and not changed


def text_limit(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest text, in tokens, that the model can read, or None if nothing ends."""
    stacks = [getattr(config, name, config) for name in ("encoder", "decoder")]
    ends = [s for s in stacks if getattr(s, "position_embedding", None) in TABLE_POSITIONS]  # one of ours
    limits = [stack.max_position_embeddings for stack in ends]
    if tokenizer.model_max_length < 1e9:  # transformers' way of saying that there is no limit is 1e30
        limits.append(tokenizer.model_max_length)
    return min(limits, default=None)
