"""Proximal policy optimization of language models, decoders and encoder-decoders, on TRL's machinery.

    from hf_llm.rlhf import PPOConfig, PPOTrainer

TRL is imported when one of the two is first asked for.
"""

import importlib


_HOMES = {"PPOConfig": ".config", "PPOTrainer": ".trainer"}

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
