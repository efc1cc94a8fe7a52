"""The families: related ones in one file, one table each. A file's `FAMILIES` are found by their `model_type`."""

import importlib
import pkgutil

from ..family import Family


# Where several families can express a model, the earlier one is the nearest. First qwen3, which is what a decoder with
# hf_llm's defaults is (RMSNorm, RoPE, SwiGLU, GQA, QK norm); then those that the most engines serve, the plainer
# before the more special. The rest follow by name.
PREFERRED = "qwen3 llama mistral qwen2 qwen3_moe mixtral qwen2_moe gpt2 bert electra t5 bart".split()


def load_families() -> dict[str, Family]:
    """Every family by the `model_type` of its native configuration, the nearest first."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for family in importlib.import_module(f"{__name__}.{module.name}").FAMILIES:
            found[family.name] = family
    order = {name: place for place, name in enumerate(PREFERRED)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
