"""The configuration of a pretraining run; model fields and training arguments are checked as well as our own."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from ..models.configuration import LLMDecoderConfig, LLMEncoderDecoderConfig
from .arguments import MANAGED_ARGUMENTS, PretrainingArguments
from .settings import build_section, check_keys, check_training_fields, load_settings, suggestion


@dataclass
class TokenizerSection:
    """`path` opens an existing tokenizer; without it one is trained on the training split and kept in the run."""

    path: str | None = None
    algorithm: str = "bpe"
    vocab_size: int = 8192


@dataclass
class DataSection:
    """Where the text comes from and how it is cut into rows.

    `corpus` is anything that `hf_llm.data.load_corpus` takes: a name, a path or glob, a Hub dataset, a list of those.
    Lengths are in tokens. `validation_rows` bounds the rows of one evaluation.
    """

    corpus: Any = "python-stdlib"
    held_out_fraction: float = 0.05
    streaming: bool = False
    row_length: int = 512
    target_row_length: int | None = None
    validation_rows: int = 256
    num_proc: int | None = None
    cache_dir: str | None = None


@dataclass
class SamplesSection:
    """What is generated (decoder), filled (encoder) or restored (encoder-decoder) at each save."""

    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 64
    temperature: float = 0.7
    top_p: float = 0.95


@dataclass
class FromDecoderSection:
    """The decoder that an encoder or encoder-decoder starts from (see `hf_llm.surgery`).

    `path`: a checkpoint of ours or a native one, or a Hub id. Its tokenizer is used, with the special tokens that the
    stack needs; sizes are the decoder's, and the `model` section holds what else is to be otherwise. For an
    encoder-decoder, `tied` lets the halves share their layers, and `cross_attention` says what it starts from:
    "self_attention", "zero" or "random". `extra_special_tokens` are added as well, such as UL2's "[R]", "[S]", "[X]".
    """

    path: str
    extra_special_tokens: list[str] = field(default_factory=list)
    tied: bool = False
    cross_attention: str = "self_attention"


@dataclass
class RunConfig:
    """Everything that defines a run.

    Attributes:
        output_dir: checkpoints, TensorBoard logs, report and final model.
        model: `model_type` and fields of that configuration class; `vocab_size`, special token ids and
            `max_position_embeddings` default to what tokenizer and data need.
        objective: `name` and options of `hf_llm.data.make_objective`.
        training: fields of `PretrainingArguments`.
        init_from: checkpoint whose weights the run starts from (same architecture).
        from_decoder: decoder whose weights, tokenizer and sizes an encoder or encoder-decoder starts from.
        word_vectors: word2vec or GloVe file whose vectors the token embeddings start from, where a token is a word.
        resume: "auto" goes on from the last good checkpoint in `output_dir`, "never" refuses to, or a checkpoint path.
        seed: of initialisation, dropout, data order and mask draws.
        cpu_threads: threads of a CPU run; default: `accelerate launch` sets one, the run takes all cores instead.
    """

    output_dir: str
    model: dict
    training: dict
    objective: dict
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection = field(default_factory=DataSection)
    samples: SamplesSection = field(default_factory=SamplesSection)
    init_from: str | None = None
    from_decoder: FromDecoderSection | None = None
    word_vectors: str | None = None
    resume: str = "auto"
    seed: int = 0
    cpu_threads: int | None = None

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def load_run_config(path: str | Path, overrides: list[str] = ()) -> RunConfig:
    """The run that a YAML file and `--section.key value` overrides describe.

    Raises:
        ValueError: unreadable file, malformed override, unknown key, or value of the wrong type.
    """
    return run_config(load_settings(path, overrides))


def run_config(settings: dict) -> RunConfig:
    """Build a `RunConfig` from nested dicts, checking every key and type."""
    config = build_section(RunConfig, settings)
    check_model_fields(config.model)
    check_training_fields(config.training, PretrainingArguments, MANAGED_ARGUMENTS)
    if not isinstance(config.objective.get("name"), str):
        raise ValueError("objective.name is missing: which objective of hf_llm.data.OBJECTIVES to train with")
    if config.from_decoder is not None:
        _check_from_decoder(config)
    return config


def _check_from_decoder(config: RunConfig) -> None:
    """Nothing else says where weights and tokenizer come from, and the stack is one that can start from a decoder."""
    for key, value in (
        ("init_from", config.init_from),
        ("word_vectors", config.word_vectors),
        ("tokenizer.path", config.tokenizer.path),
    ):
        if value is not None:
            raise ValueError(f"{key} = {value!r} has no effect with from_decoder: set one of them")
    model_type = config.model["model_type"]
    if model_type == LLMDecoderConfig.model_type:
        raise ValueError(
            f"model.model_type = {model_type!r} has no use for from_decoder: init_from goes on with a decoder"
        )
    if model_type != LLMEncoderDecoderConfig.model_type:
        for name in ("tied", "cross_attention"):
            value = getattr(config.from_decoder, name)
            if value != getattr(FromDecoderSection, name):
                raise ValueError(f"from_decoder.{name} = {value!r} is for an encoder-decoder")


def check_model_fields(model: dict) -> None:
    """Check the `model` section against the fields of its configuration class.

    A `PreTrainedConfig` takes unknown keyword arguments as attributes, so a typing error would pass in silence.
    """
    model_type = model.get("model_type")
    if model_type not in CONFIG_MAPPING:
        own = [name for name in CONFIG_MAPPING if name.startswith("hf_llm")]
        raise ValueError(f"model.model_type = {model_type!r} is unknown{suggestion(str(model_type), own)}")
    _check_config_fields(CONFIG_MAPPING[model_type], {k: v for k, v in model.items() if k != "model_type"}, "model")


def _check_config_fields(config_class: type, settings: dict, where: str) -> None:
    check_keys(settings, [f.name for f in dataclasses.fields(config_class) if f.init], where)
    for name, sub_class in config_class.sub_configs.items():
        if isinstance(settings.get(name), dict):
            _check_config_fields(sub_class, settings[name], f"{where}.{name}")
