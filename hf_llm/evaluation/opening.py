"""Open what is evaluated: a checkpoint of ours, or any other of transformers, as it is."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_llm.data.checkpoints import checkpoint_path


# stack -> the class that opens it with its language-modelling head
LANGUAGE_MODELS = {
    "decoder": AutoModelForCausalLM,
    "encoder": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}


def stack_of(config: PreTrainedConfig) -> str:
    """The kind of language model of a configuration: a key of `LANGUAGE_MODELS`.

    Raises:
        ValueError: it is none.
    """
    if config.is_encoder_decoder:
        return "encoder-decoder"
    architecture = (config.architectures or [""])[0]
    masked, causal = (type(config) in auto._model_mapping for auto in (AutoModelForMaskedLM, AutoModelForCausalLM))
    if masked and (not causal or "MaskedLM" in architecture or "PreTraining" in architecture):
        return "encoder"
    if causal:
        return "decoder"
    raise ValueError(f"model: {config.model_type!r} has no language-modelling head")


@dataclass(frozen=True)
class Opened:
    """A model in evaluation mode, its tokenizer, and what texts are framed with.

    Attributes:
        stack: a key of `LANGUAGE_MODELS`.
        before, after: special ids that the tokenizer puts around a text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stack: str
    before: list[int]
    after: list[int]

    @property
    def limit(self) -> int:
        """Tokens that the model was made for, special ones included."""
        config = self.model.config.get_text_config(decoder=self.stack != "encoder")
        return getattr(config, "max_position_embeddings", None) or min(self.tokenizer.model_max_length, 1024)

    @property
    def ends(self) -> bool:
        """Whether nothing beyond `limit` can be read, since positions are looked up in a table."""
        config = self.model.config.get_text_config(decoder=self.stack != "encoder")
        kind = getattr(config, "position_embedding", None)
        if kind is not None:
            return kind in ("learned", "sinusoidal")
        return hasattr(config, "max_position_embeddings") and getattr(config, "rope_parameters", None) is None


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special ids that `tokenizer(text)` puts before and after a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
    return framed[:start], framed[start + len(plain) :]


def open_checkpoint(
    path: str,
    auto_class_of: Callable[[PreTrainedConfig], type],
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    A model with a trained head, and its tokenizer.

    Args:
        path: a folder, a Hub id, or a name of `hf_llm.data.checkpoints`; the folder of a PEFT adapter opens its base
            with the adapter merged into it.
        auto_class_of: says which head is wanted.
        dtype: of the weights.
        attn_implementation: backend of the attention; chosen by the model if None.
        trust_remote_code: run the code that the checkpoint carries, where hf_llm does not know its architecture.

    Raises:
        ValueError: there is no such checkpoint, no tokenizer beside it, or no trained head in it.
    """
    folder = checkpoint_path(path)
    note = Path(folder, "adapter_config.json")
    adapter = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    base = adapter.get("base_model_name_or_path") or folder
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        auto_class = auto_class_of(config)
        model, found = auto_class.from_pretrained(
            base,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"model = {path!r} cannot be opened: {error}") from error
    brought = set(adapter.get("modules_to_save") or ())
    if missing := [key for key in sorted(found["missing_keys"]) if not brought & set(key.split("."))]:
        head = auto_class.__name__.removeprefix("AutoModel")
        raise ValueError(f"model = {path!r} has no trained head {head}: {', '.join(missing)} are missing")
    if adapter:
        from hf_llm.surgery.adapters import merge_adapter  # needs PEFT

        model = merge_adapter(model, folder)
    return model.to(torch.accelerator.current_accelerator() or "cpu").eval(), tokenizer


def open_language_model(path: str, **options) -> Opened:
    """
    Args:
        path, options: as in `open_checkpoint`.

    Raises:
        ValueError: there is no such checkpoint, no tokenizer beside it, or it is no language model, or one without a
            trained head.
    """
    return opened(*open_checkpoint(path, lambda config: LANGUAGE_MODELS[stack_of(config)], **options))


def opened(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stack: str | None = None) -> Opened:
    """A model and a tokenizer that are open already; `stack` is read off the configuration."""
    return Opened(model.eval(), tokenizer, stack or stack_of(model.config), *frame(tokenizer))
