"""Where `transformers serve` finds the models.

It looks the class of a checkpoint up by name in transformers' own namespace, where a class that travels with its
checkpoint is not. An Auto class stands there for it, which opens the same checkpoint by its `auto_map`.
"""

import transformers


class AutoClassOf:
    """An attribute of a module that gives one of the module's Auto classes, imported when it is asked for. What is set
    on the module itself comes first: `import hf_llm` puts the real classes there."""

    def __init__(self, auto_name: str):
        self.auto_name = auto_name

    def __get__(self, module, owner: type):
        return self if module is None else getattr(module, self.auto_name)


def name_in_transformers(auto_map: dict[str, str]) -> None:
    """Let `transformers.X` be an Auto class for each model class X of an `auto_map` (its first, where it has several).

    The attributes are those of the module's class: while importing, transformers puts a second module object into the
    place of its first, and both are in use.
    """
    for auto_name, target in reversed(auto_map.items()):
        if auto_name != "AutoConfig":
            setattr(type(transformers), target.split(".")[1], AutoClassOf(auto_name))
