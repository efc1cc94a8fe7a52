"""The configurations of runs: what all have in common, and that of pretraining."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedTokenizerBase

from hf_llm.data import ALGORITHMS, check_objective

from ..models.checks import TABLES
from ..models.configuration import LLMDecoderConfig, LLMEncoderDecoderConfig
from .opening import ModelSection
from .settings import build_section, check_keys, suggestion
from .stacks import stack_of


_SOME_VOCABULARY = 2**24  # of a configuration that is only to be checked


@dataclass(kw_only=True)
class RunConfig:
    """Base of the configurations of all runs; each job adds its sections, and checks in `__post_init__`.

    Attributes:
        output_dir: checkpoints, TensorBoard logs, report and final model.
        training: fields of the arguments class of the job's trainer.
        resume: "auto" goes on from the last good checkpoint in `output_dir`, "never" refuses to, or a checkpoint path.
        seed: of initialisation, dropout, data order and what else is drawn.
        cpu_threads: threads of a CPU run; default: `accelerate launch` sets one, the run takes all cores instead.
        imports: a file, or several, with variants of your own (see docs/your_own_variant.md).
        samples_while_training: whether each evaluation also shows what the model makes of the prompts of its final
            samples, in TensorBoard and as a table of the card.
    """

    output_dir: str
    training: dict
    resume: str = "auto"
    seed: int = 0
    cpu_threads: int | None = None
    imports: str | list[str] = field(default_factory=list)
    samples_while_training: bool = False

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass
class TokenizerSection:
    """
    Attributes:
        path: an existing tokenizer; without it one is trained on the training split and kept in the run, or that of
            `model.path` is taken.
        algorithm: of `hf_llm.data.train_tokenizer`.
        vocab_size: number of tokens of a new one.
        add: special tokens that it is given beside its own: chat markers, sentinels, a mask.
    """

    path: str | None = None
    algorithm: str = "bpe"
    vocab_size: int = 8192
    add: list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            raise ValueError(
                f"tokenizer.algorithm = {self.algorithm!r} is unknown{suggestion(self.algorithm, ALGORITHMS)}"
            )


@dataclass
class DataSection:
    """
    Attributes:
        corpus: what `hf_llm.data.load_corpus` takes: a name, a path or glob, a Hub dataset, a list of those.
        split_documents: how texts are cut into documents, `{by: blank_lines | paragraphs | words, max_words: N}`; by
            default they are not, but a corpus of one text is.
        held_out_fraction: share of the documents that is for validation.
        validation: what is validated on instead, as `corpus`; then nothing is held out.
        streaming: whether the corpus is read as it comes, instead of packed beforehand.
        row_length: tokens of a row, documents packed into it.
        target_row_length: tokens of a row of targets, of an encoder-decoder.
        validation_rows: bounds the rows of one evaluation.
        num_proc: processes that tokenize and pack.
        cache_dir: folder of the packed rows.
    """

    corpus: Any = "python-stdlib"
    split_documents: dict | None = None
    held_out_fraction: float = 0.05
    validation: Any = None
    streaming: bool = False
    row_length: int = 512
    target_row_length: int | None = None
    validation_rows: int = 256
    num_proc: int | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        if not self.held_out_fraction and self.validation is None:
            raise ValueError(
                "data.held_out_fraction = 0 leaves nothing to validate on: name a validation set as data.validation"
            )

    def source(self, split: str) -> tuple[Any, dict]:
        """What `load_corpus` takes for a split, "train" or "validation": its first argument, and keywords."""
        spec, held_out = self.corpus, self.held_out_fraction
        if self.validation is not None:
            spec, split = (self.corpus, "train") if split == "train" else (self.validation, "all")
            held_out = 0.0
        if self.split_documents is not None:
            specs = spec if isinstance(spec, list) else [spec]
            specs = [{"name": s} if isinstance(s, str) else s for s in specs]
            spec = [{"split_documents": self.split_documents, **s} for s in specs]
        return spec, {"split": split, "held_out_fraction": held_out}


@dataclass
class SamplesSection:
    """
    Attributes:
        prompts: what is continued (decoder), filled in (encoder) or restored (encoder-decoder) at each save.
        max_new_tokens: length of a sample, in tokens.
        temperature: of sampling; 0 decodes greedily.
        top_p: share of the probability that is sampled from.
    """

    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 64
    temperature: float = 0.7
    top_p: float = 0.95


@dataclass
class FromDecoderSection:
    """The decoder that an encoder or encoder-decoder starts from (see `hf_llm.surgery`).

    Attributes:
        path: a checkpoint of ours or a native one, or a Hub id. Its tokenizer is used, with the special tokens that
            the stack needs; sizes are the decoder's, and the `model` section holds what else is to be otherwise.
        extra_special_tokens: are added to the tokenizer, such as UL2's "[R]", "[S]", "[X]".
        tied: whether the halves of an encoder-decoder share their layers.
        cross_attention: what that of an encoder-decoder starts from: "self_attention", "zero" or "random".
    """

    path: str
    extra_special_tokens: list[str] = field(default_factory=list)
    tied: bool = False
    cross_attention: str = "self_attention"


@dataclass(kw_only=True)
class PretrainingConfig(RunConfig):
    """Everything that defines a pretraining run.

    Attributes:
        model: a new model, `model_type` and fields of that configuration class, whose `vocab_size`, special token ids
            and `max_position_embeddings` default to what tokenizer and data need; or a checkpoint to go on with,
            `path` and what else a `hf_llm.training.opening.ModelSection` has: weights, architecture and tokenizer are
            its own, and `fields` changes the configuration.
        objective: `name` and options of `hf_llm.data.make_objective`.
        from_decoder: decoder whose weights, tokenizer and sizes an encoder or encoder-decoder starts from.
        word_vectors: word2vec or GloVe file whose vectors the token embeddings start from, where a token is a word.
    """

    model: dict
    objective: dict
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection = field(default_factory=DataSection)
    samples: SamplesSection = field(default_factory=SamplesSection)
    from_decoder: FromDecoderSection | None = None
    word_vectors: str | None = None

    def __post_init__(self):
        if not isinstance(self.objective.get("name"), str):
            raise ValueError("objective.name is missing: which objective of hf_llm.data.OBJECTIVES to train with")
        if self.word_vectors is not None and not Path(self.word_vectors).is_file():
            raise ValueError(f"word_vectors = {self.word_vectors!r} is no file")
        if self.checkpoint is not None:
            self._check_checkpoint()
            return
        check_model_fields(self.model)
        if self.from_decoder is not None:
            self._check_from_decoder()
        stack = stack_of(CONFIG_MAPPING[self.model["model_type"]]).name
        check_objective(self.objective["name"], stack, self.objective.keys() - {"name", "decoder_start_token_id"})
        if self.from_decoder is None:  # whose sizes they are otherwise
            new_model_config(self.model, None, self.longest_row)

    @property
    def checkpoint(self) -> ModelSection | None:
        """The checkpoint that the run goes on with, if it is not one of a new model."""
        return build_section(ModelSection, self.model, "model") if "path" in self.model else None

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row of inputs or targets."""
        return max(self.data.row_length, self.data.target_row_length or 0)

    def _check_checkpoint(self) -> None:
        """Nothing else says where weights and tokenizer come from."""
        if self.from_decoder is not None or self.word_vectors is not None:
            name = "word_vectors" if self.from_decoder is None else "from_decoder"
            raise ValueError(f"{name} has no effect with model.path = {self.checkpoint.path!r}: set one of them")
        if self.tokenizer != TokenizerSection(self.tokenizer.path, add=self.tokenizer.add):
            raise ValueError(
                f"tokenizer: algorithm and vocab_size are of a new tokenizer, and model.path = "
                f"{self.checkpoint.path!r} has one; tokenizer.path names another"
            )
        if self.checkpoint.tokenizer or self.checkpoint.add_tokens:
            raise ValueError("model.tokenizer and model.add_tokens: use tokenizer.path and tokenizer.add")

    def _check_from_decoder(self) -> None:
        """Nothing else says where weights and tokenizer come from, and the stack can start from a decoder."""
        for key, value in {"word_vectors": self.word_vectors, "tokenizer.path": self.tokenizer.path}.items():
            if value is not None:
                raise ValueError(f"{key} = {value!r} has no effect with from_decoder: set one of them")
        model_type = self.model["model_type"]
        if model_type == LLMDecoderConfig.model_type:
            raise ValueError(
                f"model.model_type = {model_type!r} has no use for from_decoder: model.path goes on with a decoder"
            )
        if model_type != LLMEncoderDecoderConfig.model_type:
            for name in ("tied", "cross_attention"):
                value = getattr(self.from_decoder, name)
                if value != getattr(FromDecoderSection, name):
                    raise ValueError(f"from_decoder.{name} = {value!r} is for an encoder-decoder")


def check_model_fields(model: dict) -> None:
    """Check a section `model_type` + fields against that configuration class.

    A `PreTrainedConfig` takes unknown keyword arguments as attributes, so a typing error would pass in silence.
    """
    model_type = model.get("model_type")
    if model_type not in CONFIG_MAPPING:
        own = [name for name in CONFIG_MAPPING if name.startswith("hf_llm")]
        raise ValueError(f"model.model_type = {model_type!r} is unknown{suggestion(str(model_type), own)}")
    _check_config_fields(CONFIG_MAPPING[model_type], {k: v for k, v in model.items() if k != "model_type"}, "model")


def new_model_config(model: dict, tokenizer: PreTrainedTokenizerBase | None, length: int) -> PreTrainedConfig:
    """A configuration from `model_type` and fields of its class.

    Args:
        tokenizer: decides vocabulary and special tokens where `model` does not; None if the configuration is only to
            be checked.
        length: of the longest row, which `max_position_embeddings` defaults to.

    Raises:
        ValueError: fields that are no model together.
    """
    fields = {k: v for k, v in model.items() if k != "model_type"}
    config_class = CONFIG_MAPPING[model["model_type"]]
    legal = {f.name for f in dataclasses.fields(config_class)}
    ids = {name: getattr(tokenizer, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    vocab_size = _SOME_VOCABULARY if tokenizer is None else math.ceil(len(tokenizer) / 64) * 64
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": length}
    try:
        if "encoder" in config_class.sub_configs:
            parts = {part: {**sizes, **ids, **fields.pop(part, {})} for part in ("encoder", "decoder")}
            start = {"decoder_start_token_id": getattr(tokenizer, "pad_token_id", None)}
            return config_class(**{**start, **ids, **fields}, **parts)
        known = {k: v for k, v in {**sizes, **ids}.items() if k in legal}
        return config_class(**{**known, **fields})
    except ValueError as error:
        raise ValueError(f"model: {error}") from error


def _check_config_fields(config_class: type, settings: dict, where: str) -> None:
    chosen = [table.get(settings.get(table.setting)) for table in TABLES]
    own = [name for entry in chosen for name in getattr(entry, "config_fields", ())]
    check_keys(settings, [*own, *(f.name for f in dataclasses.fields(config_class) if f.init)], where)
    for name, sub_class in config_class.sub_configs.items():
        if isinstance(settings.get(name), dict):
            _check_config_fields(sub_class, settings[name], f"{where}.{name}")
