"""Tensors to and from files of safetensors, with the errors that a caller can tell of."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

_LFS = b"version https://git-lfs"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors, by name, as stored. ValueError, with the file's name, if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        with open(path, "rb") as handle:
            is_pointer = handle.read(len(_LFS)) == _LFS
        why = "a pointer, whose file Git LFS has not fetched" if is_pointer else error
        raise ValueError(f"{path.name} is not a file of safetensors ({why})") from error
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name as safetensors. OSError if the disk is full or the file cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:  # whose text alone has the number of what the system said
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
