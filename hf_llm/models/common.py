"""What the configurations of the three stacks share: fields, the check of keywords, opening and saving."""

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from .compat import CACHE_NAMES  # first: it refuses the versions of transformers that lack what follows


# isort: split
from transformers import PreTrainedConfig
from transformers.utils import logging

from .checks import TABLES, CommonChecks, strict_configuration
from .table import SOURCES, load_variants, variants_module


VERSION = "0.2.0"

# Auto class -> suffix of the class that serves it: of every stack, and of one
_AUTO_HEADS = {
    "AutoModel": "Model",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
}
_OWN_AUTO_HEADS = {
    "encoder": {"AutoModelForMaskedLM": "ForMaskedLM", "AutoModelForMultipleChoice": "ForMultipleChoice"},
    "decoder": {"AutoModelForCausalLM": "ForCausalLM"},
    "encoder_decoder": {"AutoModelForSeq2SeqLM": "ForConditionalGeneration"},
}

logger = logging.get_logger("transformers")


def auto_map(stack: str) -> dict[str, str]:
    """The full `auto_map` of a stack: every Auto class and the file and class that serves it (all are saved)."""
    prefix = "LLM" + "".join(part.capitalize() for part in stack.split("_"))
    own = _OWN_AUTO_HEADS[stack]
    heads = _AUTO_HEADS | own | {"AutoModelForPreTraining": next(iter(own.values()))}
    heads = {auto: f"{stack}.{prefix}{suffix}" for auto, suffix in heads.items()}
    return {"AutoConfig": f"configuration.{prefix}Config", **heads}


@strict_configuration
class CommonConfig(CommonChecks, PreTrainedConfig):
    """
    The base of all configurations. Fields are read as they are, are the same for all layers, and are saved with the
    code that opens them.

        tie_word_embeddings: the head's weight is that of the (decoder's) token embedding.
        classifier_dropout, classifier_bias: before the last linear layer of a task head; whether that has a bias.
    """

    keys_to_ignore_at_inference: ClassVar = CACHE_NAMES
    # Read this instead of `isinstance`: transformers loads each file of a local checkpoint with its own neighbours, so
    # the class that `AutoConfig` returns is not the one that decoder.py imports.
    is_stack: ClassVar[bool] = False  # one stack, whose fields are the architecture

    tie_word_embeddings: bool = True
    classifier_dropout: float | int = 0.0
    classifier_bias: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    hf_llm_version: str | None = None

    # PreTrainedConfig checks `attribute_map` and per-layer overrides on every read. We have neither, and decoding one
    # token reads about 100 fields.
    __getattribute__ = object.__getattribute__

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.attribute_map:
            cls.__getattribute__ = PreTrainedConfig.__getattribute__

    @PreTrainedConfig.per_layer_config.setter
    def per_layer_config(self, per_layer_config: dict | None) -> None:
        """Refuses transformers' fields that differ between layers: fields of their own say what may."""
        if per_layer_config:
            raise ValueError(
                f"`per_layer_config={per_layer_config}`: layers differ by `layer_types`, `mlp_layer_types`, "
                "`rope_layers` and `layer_sharing` alone."
            )

    def check_keywords(self, keywords: dict[str, Any], further: Iterable[str] = ()) -> None:
        """Refuse a keyword that is no field but nearly the name of one. (PreTrainedConfig takes any keyword.)

        A keyword of a saved configuration, which has its `model_type`, only warns: what was saved can be opened.
        further: legal names that are no fields of the class.
        """
        fields = {field.name for field in dataclasses.fields(self)}.union(further)
        for keyword in keywords:
            near = difflib.get_close_matches(keyword, fields, n=1, cutoff=0.85)
            if not near or keyword in fields or hasattr(type(self), keyword):
                continue
            message = f"`{keyword}` is not a field of {type(self).__name__}; did you mean `{near[0]}`?"
            if "model_type" not in keywords:
                raise ValueError(message)
            logger.warning_once(f"{message} Its value changes nothing.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, which opens a checkpoint of another architecture with no more than a warning."""
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"`model_type={found!r}`: this checkpoint is of another architecture, {cls.__name__} opens "
                f"{cls.model_type!r}. Use an Auto class, or import a native checkpoint with `hf-llm import`."
            )
        if variants := config_dict.get("variants"):
            load_variants()
            if missing := ", ".join(name for name in variants if name not in SOURCES):
                raise ValueError(
                    f"This checkpoint has variants of its user's own, which are not imported: {missing}, beside its "
                    "config.json. Pass the file to `hf_llm.import_variants` first (on the command line: `--imports`; "
                    "in a recipe: `imports`)."
                )
        return super().from_dict({**config_dict, "model_type": found}, **kwargs)

    @property
    def stacks(self) -> list["CommonConfig"]:
        """The configurations of all stacks."""
        return [self] if self.is_stack else [self.encoder, self.decoder]

    @property
    def own_choices(self) -> dict[str, str]:
        """The user's own variants that are chosen, such as `attention_type='my_gated'`, and the files they are in."""
        chosen = [(table, getattr(stack, table.setting)) for stack in self.stacks for table in TABLES]
        return {f"{table.setting}={name!r}": table.files[name] for table, name in chosen if name in table.files}

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; also writes the full `auto_map`, the version of this package, and files of variants."""
        self.auto_map = auto_map(self.model_type.removeprefix("hf_llm_"))
        self.hf_llm_version = VERSION
        self.__dict__.pop("variants", None)
        if files := sorted(set(self.own_choices.values())):
            self.variants = files
        super().save_pretrained(save_directory, **kwargs)
        if files and self._auto_class is not None:
            for name in files:
                Path(save_directory, name).write_text(SOURCES[name], encoding="utf-8")
            Path(save_directory, "variants.py").write_text(variants_module(files), encoding="utf-8")
