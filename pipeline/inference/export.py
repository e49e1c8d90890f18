"""Writes networks out of their artifacts, for use without the pipeline.

A tokenizer for `models.tokenizers.load`, or diffusers; a generator for the public code of SiT, REPA and SRA; samples
for ADM's evaluation.
"""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from models.choices import PublicSit
from models.public_sit import to_public
from models.sit import SiT
from models.tokenizers import save
from pipeline.artifacts import Manifest, checked_copy, read_checked
from pipeline.errors import ContractError, StorageError
from pipeline.inference.details import sit_details, sit_weights
from pipeline.inference.drawing import Pixels
from pipeline.inference.picture_files import ready_file, write_npz
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


def export_sit(storage: Storage, manifest: Manifest, decay: float | None, kind: PublicSit, file: Path) -> None:
    """Write the generator of a train-sit artifact to a new file, as the checkpoints of `kind` have it.

    `decay`: which average of the weights, as of `sit_weights`. ContractError if there is none of it or `kind` has no
    place for it, StorageError if the file is there or cannot be written.
    """
    details = sit_details(manifest)
    for name, public in (("path", "linear"), ("prediction", "velocity")):
        if details[name] != public:
            raise ContractError(
                f"{manifest.name} has {name} {details[name]}, and {kind} samples with {public}",
                f"Export one that was trained with sit.{name}={public}.",
            )
    with torch.device("meta"):
        network = SiT(**details["network"])
    with checked_copy(storage, manifest, sit_weights(manifest, decay)) as weights:
        network.load_state_dict(load_file(weights), assign=True)  # which knows the names of earlier artifacts
        try:
            theirs = to_public(network.state_dict(), kind, details["network"])
        except ValueError as error:
            raise ContractError(f"{manifest.name}: {error}", "Export it as another kind, or not at all.") from error
        _write_new(file, {"ema": theirs})


def export_samples(storage: Storage, manifest: Manifest, file: Path) -> int:
    """Write the images of a sample artifact to a new file as ADM's evaluation reads them; returns their number.

    StorageError if the file is there or cannot be written, ContractError as `read_checked`.
    """
    ready_file(file, "--to")
    if file.exists():
        raise StorageError(f"{file} is there already", "Choose another file with --to.")
    paths = [shard["path"] for shard in manifest.details["shards"]]
    first_NCHW, labels = _shard(storage, manifest, paths[0])[0], [_shard(storage, manifest, one)[1] for one in paths]
    batches = (np.moveaxis(_shard(storage, manifest, one)[0], 1, -1) for one in paths)
    write_npz(file, np.concatenate(labels), first_NCHW.shape[-1], batches, "--to")
    return sum(map(len, labels))


def _shard(storage: Storage, manifest: Manifest, path: str) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Images uint8 (N, 3, H, W) and labels of one file of a sample artifact."""
    with np.load(io.BytesIO(read_checked(storage, manifest, path))) as arrays:
        return arrays["images"], arrays["labels"]


def _write_new(file: Path, tree: dict[str, dict[str, torch.Tensor]]) -> None:
    """As `torch.save`. StorageError if the file is there or cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "xb") as handle:
            torch.save(tree, handle)
    except FileExistsError as error:
        raise StorageError(f"{file} is there already", "Choose another file with --to.") from error
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the system's errors into its own
        file.unlink(missing_ok=True)
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise StorageError(f"{file}: {why}", "Choose another file with --to.") from error
