"""Faces that load late: a room offers its names at once, and imports the module of a name when somebody uses it.

So `plan` may look at what a room has to offer without paying for torch, pyarrow or matplotlib behind it.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy(package: str, **modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose `modules` (module name to the names that it gives) are imported on use."""
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
