"""Make other libraries know the models: transformers' Auto classes and name tables, PEFT's default targets."""

import sys
from types import ModuleType

import transformers
from transformers.models.auto import modeling_auto

from .deferred import when_imported
from .models import common, configuration, decoder, encoder, encoder_decoder


STACKS = {
    "encoder": (configuration.LLMEncoderConfig, encoder),
    "decoder": (configuration.LLMDecoderConfig, decoder),
    "encoder_decoder": (configuration.LLMEncoderDecoderConfig, encoder_decoder),
}

# Auto class -> the table of class names that Trainer, pipelines, serve and PEFT search
NAME_TABLES = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
}

# Modules have Llama's names, so Llama's rows of PEFT's tables hold; except those of the norms, and latent attention's.
NORMS = [f"{branch}_{norm}" for branch in ("self_attn", "cross_attn", "mlp") for norm in ("norm", "output_norm")]
OWN_ROWS = {"TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING": [*NORMS, "embed_norm", "norm"]}


def model_classes(stack: str) -> list[type]:
    """The body of a stack and all its heads."""
    config_class, module = STACKS[stack]
    names = {target.split(".")[1]: None for target in common.auto_map(stack).values()}
    return [getattr(module, name) for name in names if name != config_class.__name__]


def register() -> None:
    """Register every configuration and model. Calling it again changes nothing."""
    # importing `transformers.processing_utils` puts a second module object in the place of the first: both are in use
    namespaces = (transformers, sys.modules["transformers"])
    for stack, (config_class, module) in STACKS.items():
        transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class()
        for auto_name, target in common.auto_map(stack).items():
            if auto_name == "AutoConfig":
                continue
            model_class = getattr(module, target.split(".")[1])
            getattr(transformers, auto_name).register(config_class, model_class, exist_ok=True)
            getattr(modeling_auto, NAME_TABLES[auto_name])[config_class.model_type] = model_class.__name__
            for namespace in namespaces:
                setattr(namespace, model_class.__name__, model_class)
            model_class.register_for_auto_class(auto_name)  # so that saving writes the code files
    when_imported("peft.utils.constants", add_adapter_targets)


def add_adapter_targets(tables: ModuleType) -> None:
    """Give each of PEFT's tables of default targets a row for each of our model types, unless it has one."""
    for name, table in vars(tables).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "llama" in table:
            for config_class, _ in STACKS.values():
                table.setdefault(config_class.model_type, OWN_ROWS.get(name, table["llama"]))
