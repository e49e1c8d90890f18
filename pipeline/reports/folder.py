"""Writes what a command has drawn to the folder of its option --to."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import StorageError


def write_files(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files by name to a folder, which is made if need be; returns the paths. StorageError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}", "Choose another folder with --to.") from error
    return [folder / name for name in files]
