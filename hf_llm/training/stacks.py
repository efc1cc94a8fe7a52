"""What differs between the three stacks in a training run, as data."""

from dataclasses import dataclass

from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedConfig


@dataclass(frozen=True)
class Stack:
    """A kind of model.

    Attributes:
        name: as in `hf_llm.data`.
        auto_class: opens it with its language-modelling head.
        pipeline_tag: the Hub's name of its task.
        loss_name: what its evaluation loss is per.
    """

    name: str
    auto_class: type
    pipeline_tag: str
    loss_name: str


STACKS = {
    "hf_llm_decoder": Stack("decoder", AutoModelForCausalLM, "text-generation", "next token"),
    "hf_llm_encoder": Stack("encoder", AutoModelForMaskedLM, "fill-mask", "masked token"),
    "hf_llm_encoder_decoder": Stack("encoder-decoder", AutoModelForSeq2SeqLM, "text2text-generation", "target token"),
}


def stack_of(config: PreTrainedConfig | type[PreTrainedConfig]) -> Stack:
    """The stack of a model configuration, or of its class: of a model from outside, the first that its head fits.

    Raises:
        ValueError: `config.model_type` is none of `STACKS`, and no such head is registered for it.
    """
    if config.model_type in STACKS:
        return STACKS[config.model_type]
    for stack in STACKS.values():
        if (config if isinstance(config, type) else type(config)) in stack.auto_class._model_mapping:
            return stack
    raise ValueError(f"model.model_type = {config.model_type!r} cannot be pretrained; legal: {', '.join(STACKS)}")
