"""Open what is evaluated: a checkpoint of ours, or any other of transformers, as it is."""

from dataclasses import dataclass

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


def open_language_model(
    path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> Opened:
    """
    Args:
        path: a folder, a Hub id, or a name of `hf_llm.data.checkpoints`.
        dtype: of the weights.
        attn_implementation: backend of the attention; chosen by the model if None.
        trust_remote_code: run the code that the checkpoint carries, where hf_llm does not know its architecture.
        device: default: the accelerator if there is one.

    Raises:
        ValueError: there is no such checkpoint, no tokenizer beside it, or it is no language model, or one without a
            trained head.
    """
    folder = checkpoint_path(path)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        stack = stack_of(config)
        model, found = LANGUAGE_MODELS[stack].from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"model = {path!r} cannot be opened: {error}") from error
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"]))
        raise ValueError(f"model = {path!r} has no trained language-modelling head: {missing} are missing")
    return opened(model.to(device or torch.accelerator.current_accelerator() or "cpu"), tokenizer, stack)


def opened(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stack: str | None = None) -> Opened:
    """A model and a tokenizer that are open already; `stack` is read off the configuration."""
    return Opened(model.eval(), tokenizer, stack or stack_of(model.config), *frame(tokenizer))
