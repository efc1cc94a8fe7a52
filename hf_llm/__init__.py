"""One configurable transformer core as encoder, decoder and encoder-decoder, at home in the Hugging Face ecosystem.

Importing this package registers its models with transformers' Auto classes, and what makes them fast on this machine
(`hf_llm.backends`).
"""

from . import backends, presets, registration, surgery
from .imports import import_variants
from .models.common import VERSION as __version__
from .models.configuration import LLMDecoderConfig, LLMEncoderConfig, LLMEncoderDecoderConfig
from .models.decoder import (
    LLMDecoderForCausalLM,
    LLMDecoderForQuestionAnswering,
    LLMDecoderForSequenceClassification,
    LLMDecoderForTokenClassification,
    LLMDecoderModel,
)
from .models.encoder import (
    LLMEncoderForMaskedLM,
    LLMEncoderForMultipleChoice,
    LLMEncoderForQuestionAnswering,
    LLMEncoderForSequenceClassification,
    LLMEncoderForTokenClassification,
    LLMEncoderModel,
)
from .models.encoder_decoder import (
    LLMEncoderDecoderForConditionalGeneration,
    LLMEncoderDecoderForQuestionAnswering,
    LLMEncoderDecoderForSequenceClassification,
    LLMEncoderDecoderForTokenClassification,
    LLMEncoderDecoderModel,
)


__all__ = [
    "LLMDecoderConfig",
    "LLMDecoderForCausalLM",
    "LLMDecoderForQuestionAnswering",
    "LLMDecoderForSequenceClassification",
    "LLMDecoderForTokenClassification",
    "LLMDecoderModel",
    "LLMEncoderConfig",
    "LLMEncoderDecoderConfig",
    "LLMEncoderDecoderForConditionalGeneration",
    "LLMEncoderDecoderForQuestionAnswering",
    "LLMEncoderDecoderForSequenceClassification",
    "LLMEncoderDecoderForTokenClassification",
    "LLMEncoderDecoderModel",
    "LLMEncoderForMaskedLM",
    "LLMEncoderForMultipleChoice",
    "LLMEncoderForQuestionAnswering",
    "LLMEncoderForSequenceClassification",
    "LLMEncoderForTokenClassification",
    "LLMEncoderModel",
    "__version__",
    "from_native",
    "import_variants",
    "to_native",
]

registration.register()
backends.register()
presets.attach()
surgery.attach()


def __getattr__(name: str):
    """`from_native` and `to_native`: their tables are read when they are first asked for."""
    if name in ("from_native", "to_native"):
        from . import interop

        return getattr(interop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
