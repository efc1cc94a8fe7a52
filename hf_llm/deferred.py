"""Runs a function on a module of another library as soon as somebody imports it: neither PEFT nor Liger is imported
for the sake of a few entries in their tables."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType


class _Deferred(MetaPathFinder):
    """Finds one module as Python does, and runs the function after it."""

    def __init__(self, name: str, function: Callable[[ModuleType], None]):
        self.name, self.function = name, function

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_run(module: ModuleType) -> None:
                load(module)
                self.function(module)

            spec.loader.exec_module = load_and_run
        return spec


def when_imported(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call `function` with the module `name`: now if it is imported already, else when it is."""
    if name in sys.modules:
        function(sys.modules[name])
    elif not any(isinstance(finder, _Deferred) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Deferred(name, function))
