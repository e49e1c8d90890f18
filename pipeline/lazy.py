"""Lazy package exports: a package lists its public names, and imports the module of a name on first use.

So `plan` can import packages without importing torch, pyarrow or matplotlib.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy(package: str, **modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package. `modules`: module name -> its public names, separated by spaces."""
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
