"""diffusers' classes, built by their public configs; the package is optional."""

import importlib
from typing import Any

from torch import nn


def diffusers_network(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The network of class `name` with random weights.

    Raises:
        ValueError: diffusers is not installed, or its class does not take these arguments.
    """
    try:
        network = getattr(importlib.import_module("diffusers"), name)
    except ImportError as error:
        raise ValueError(
            f"{name} is a network of the package diffusers, which is not installed ({error}); `pip install` it"
        ) from error
    try:
        made: nn.Module = network(**arguments)
    except Exception as error:  # it does not check what it is given
        raise ValueError(f"diffusers' {name} cannot be built with these arguments: {error}") from error
    return made
