"""The manifest of an artifact: its schema, its path, and how to read and remove it.

Writing an artifact is in `writer.py`, reading its files in `files.py`.
"""

import hashlib
import os
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ContractError
from pipeline.storage import Storage

SHORT = 12  # hex digits of a fingerprint in the names of folders, jobs and labels


class FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The contents of an artifact, and the inputs and config that it was created from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: str
    inputs: dict[str, str]  # stage -> fingerprint
    input_contents: dict[str, str]  # stage -> content of the artifact that was read
    config: dict[str, Any]  # the fields in the fingerprint, by dotted name
    uncounted: dict[str, Any] = {}  # other fields that the stage read, such as tolerances and places: for a repair
    files: dict[str, FileRecord]
    rows: int
    metrics: dict[str, float]
    details: dict[str, Any]  # further information for the stages that read it
    seconds: float  # over all attempts
    git_sha: str | None
    image_digest: str | None
    created: str

    @property
    def name(self) -> str:
        """STAGE/FINGERPRINT with a short fingerprint: the name in messages, and the folder at the root."""
        return artifact_path(self.stage, self.fingerprint)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% intervals of its metrics, of those that have one."""
        return {key: (low, high) for key, (low, high) in self.details.get("intervals", {}).items()}

    @property
    def content(self) -> str:
        """One digest over all files."""
        lines = "".join(f"{record.sha256} {path}\n" for path, record in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def artifact_path(stage: str, fingerprint: str) -> str:
    return f"{stage}/{fingerprint[:SHORT]}"


def work_path(stage: str, fingerprint: str) -> str:
    return f".work/{stage}/{fingerprint[:SHORT]}"


def read_manifest(storage: Storage, stage: str, fingerprint: str) -> Manifest | None:
    """The manifest, or None if nothing is committed. ContractError if it is invalid or has another fingerprint."""
    path = f"{artifact_path(stage, fingerprint)}/manifest.json"
    try:
        text = storage.read(path)
    except FileNotFoundError:
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValueError as error:
        raise ContractError(f"{storage.uri(path)} is not a manifest", "Delete that folder and run again.") from error
    if manifest.fingerprint != fingerprint:
        raise ContractError(f"{storage.uri(path)} has another fingerprint", "Delete that folder and run again.")
    return manifest


def all_manifests(storage: Storage) -> list[Manifest]:
    """Every committed artifact at this root, by stage and age. ContractError for an invalid manifest."""
    stages = [folder for folder in storage.folders() if not folder.startswith(".")]
    return [manifest for stage in sorted(stages) for manifest in manifests_of(storage, stage)]


def manifests_of(storage: Storage, stage: str) -> list[Manifest]:
    """Every committed artifact of a stage at this root, by age. ContractError for an invalid manifest."""
    found = []
    for name in storage.folders(stage):
        path = f"{stage}/{name}/manifest.json"
        try:
            found.append(Manifest.model_validate_json(storage.read(path)))
        except FileNotFoundError:
            continue  # not committed yet
        except ValidationError as error:
            raise ContractError(f"{storage.uri(path)} is not a manifest", "Delete that folder.") from error
    return sorted(found, key=lambda manifest: manifest.created)


def remove_artifact(storage: Storage, stage: str, fingerprint: str) -> None:
    """Delete an artifact, its manifest first, so that readers never see a partial one."""
    storage.delete(f"{artifact_path(stage, fingerprint)}/manifest.json")
    storage.delete_folder(artifact_path(stage, fingerprint))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def git_sha() -> str | None:
    """The commit of this checkout, or of the build of the container image; None outside of both."""
    if "DVAE_GIT_SHA" in os.environ:
        return os.environ["DVAE_GIT_SHA"]
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # an installed package, perhaps below another checkout
        return None
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return result.stdout.strip() or None
