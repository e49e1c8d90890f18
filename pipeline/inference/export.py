"""Writes a tokenizer out of its artifact, for use without the pipeline: `models.tokenizers.load`, or diffusers."""

from pathlib import Path

from safetensors.torch import load_file

from models.tokenizers import save
from pipeline.artifacts import Manifest, checked_copy
from pipeline.errors import StorageError
from pipeline.storage import Storage


def export_tokenizer(storage: Storage, manifest: Manifest, folder: Path) -> list[Path]:
    """Write the tokenizer of a train-tokenizer artifact to a new or empty folder; returns the files.

    StorageError if the folder is not empty or cannot be written, ContractError as `checked_copy`.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise StorageError(f"{folder} is not empty", "Choose another folder with --to.")
        with checked_copy(storage, manifest, "weights.safetensors") as weights:
            return save(folder, manifest.details["kind"], manifest.details["network"], load_file(weights))
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}", "Choose another folder with --to.") from error
