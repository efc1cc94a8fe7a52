"""The table of families: every `Family` that a file of this folder has, related ones in one file."""

import importlib
import pkgutil

from ...models.table import Table
from ..family import Family


# Where several families can express a model, the earlier one is the nearest. First qwen3, which is what a decoder with
# hf_llm's defaults is (RMSNorm, RoPE, SwiGLU, GQA, QK norm); then those that the most engines serve, the plainer
# before the more special. The rest follow by name, and those that users add come last.
PREFERRED = "qwen3 llama mistral qwen2 qwen3_moe mixtral qwen2_moe gpt2 bert electra t5 bart".split()


def _built_in() -> dict[str, Family]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Family)}
    order = {name: place for place, name in enumerate(PREFERRED)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


# The `model_type` of a native configuration -> its family.
FAMILIES = Table("model_type", **_built_in())
