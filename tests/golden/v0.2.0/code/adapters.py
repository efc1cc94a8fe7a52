"""Default targets of PEFT's methods on these models, so that `LoraConfig(task_type=...)` alone is enough.

PEFT looks them up in tables by `model_type`. It is not imported here: the entries are made when somebody imports it.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType


MODEL_TYPES = ("hf_llm_encoder", "hf_llm_decoder", "hf_llm_encoder_decoder")
_TABLES = "peft.utils.constants"
# the modules have Llama's names, so Llama's rows hold; except those of the norms
_NORMS = [f"{branch}_{norm}" for branch in ("self_attn", "cross_attn", "mlp") for norm in ("norm", "output_norm")]
_OWN_ROWS = {"TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING": [*_NORMS, "embed_norm", "norm"]}


def _add_rows(tables: ModuleType) -> None:
    """Give every table of PEFT a row for each of our model types, unless it has one."""
    for name, table in vars(tables).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "llama" in table:
            for model_type in MODEL_TYPES:
                table.setdefault(model_type, _OWN_ROWS.get(name, table["llama"]))


class _WhenImported(MetaPathFinder):
    """Finds PEFT's tables as Python does, and adds the rows when they have been loaded."""

    def find_spec(self, fullname, path, target=None):
        if fullname != _TABLES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_add(module: ModuleType) -> None:
                load(module)
                _add_rows(module)

            spec.loader.exec_module = load_and_add
        return spec


def register_adapter_targets() -> None:
    """Make PEFT know the models: now if it is there already, else as soon as it is imported."""
    if _TABLES in sys.modules:
        _add_rows(sys.modules[_TABLES])
    elif not any(type(finder).__name__ == _WhenImported.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())  # once, though each opened checkpoint brings this file along
