"""What makes a CPU fast: attention, RMSNorm, rotation, wide feed-forwards, and decoding."""

from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_llm.models.attention import FASTER_ATTENTION
from hf_llm.models.operators import OPERATORS
from hf_llm.models.visibility import LENGTHS

from .attention import TAKES_LENGTHS, cpu_attention_forward
from .decoding import FORMS, cpu_decode_token, cpu_decoding


def register() -> None:
    """Enter the forms for CPUs."""
    FASTER_ATTENTION[sdpa_attention_forward] = cpu_attention_forward
    LENGTHS["sdpa"] = TAKES_LENGTHS
    for name, form in {**FORMS, "decoding": cpu_decoding, "decode_token": cpu_decode_token}.items():
        OPERATORS[name]["cpu"] = form
