"""What all imports share: a file brought here, refusals in one line, and the artifact. torch is imported on use."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import ArtifactWriter, Lease, Manifest, commit, git_sha, now, remove_artifact
from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError
from pipeline.storage import Storage
from pipeline.workflow.fingerprints import counted_config, uncounted_config
from pipeline.workflow.graph import find_stage

if TYPE_CHECKING:
    from torch import Tensor

_COMMANDS = {"train-tokenizer": "import tokenizer", "train-sit": "import sit"}


def was_imported(manifest: Manifest) -> bool:
    """Whether an artifact is of weights that were not trained here."""
    return "source" in manifest.details


def check_not_imported(manifest: Manifest, root: str) -> None:
    """ContractError for an imported artifact, which no stage can make again."""
    if source := manifest.details.get("source"):
        raise ContractError(
            f"{manifest.name} was imported, and no stage can make it again",
            f"Run `python -m pipeline {_COMMANDS[manifest.stage]} {source['kind']} {source['uri']} --root {root}` "
            "again: it replaces broken files.",
        )


def import_fingerprint(stage: str, details: Mapping[str, Any]) -> str:
    """Of the content, never of its place."""
    content = {**details, "source": details["source"]["sha256"], "stage": stage, "version": find_stage(stage).version}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def local_file(storage: Storage, name: str, folder: Path, uri: str, hint: str) -> Path:
    """A local path of a file, downloaded to `folder` if the storage is remote. ConfigError if `uri` is missing."""
    local = storage.local_path(name) or folder / name
    try:
        if storage.local_path(name) is None:
            storage.download(name, local)
        elif not local.is_file():
            raise FileNotFoundError
    except FileNotFoundError:
        raise ConfigError(f"{uri} is missing", hint) from None
    return local


@contextmanager
def refused(uri: str, hint: str) -> Iterator[None]:
    """Turn what `models` says of a source into one line about it."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{uri}: {error}", hint) from error


def check_finite(tensors: "Mapping[str, Tensor]") -> None:
    """ValueError if a number of a tensor is not finite."""
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is not finite")


def committed_import(
    storage: Storage,
    stage: str,
    config: Config,
    tensors: "Mapping[str, Tensor]",
    details: dict[str, Any],
    folder: Path,
) -> Manifest:
    """The artifact that stands for a trainer's, in the place of a broken one.

    Args:
        storage: of the root.
        stage: the trainer.
        config: one that uses the import.
        tensors: the network's weights.
        details: of the manifest, what the fingerprint is of.
        folder: for temporary files.
    """
    from models.tensor_files import write_tensors

    fingerprint = import_fingerprint(stage, details)
    lease = Lease(storage, stage, fingerprint)
    finished = False
    try:
        remove_artifact(storage, stage, fingerprint)
        writer = ArtifactWriter(storage, stage, fingerprint)
        path = folder / "converted"
        write_tensors(path, tensors)
        writer.add(path, "weights.safetensors")
        manifest = Manifest(
            stage=stage,
            fingerprint=fingerprint,
            inputs={},
            input_contents={},
            config=counted_config(find_stage(stage), config),
            uncounted=uncounted_config(find_stage(stage), config),
            files=writer.files,
            rows=0,
            metrics={},
            details=details,
            seconds=round(lease.seconds(), 3),
            git_sha=git_sha(),
            image_digest=None,
            created=now(),
        )
        commit(storage, manifest, lease)
        finished = True
        return manifest
    finally:
        lease.release(finished)
