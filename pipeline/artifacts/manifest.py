"""What an artifact is: a folder `STAGE/FINGERPRINT` that exists when its `manifest.json` does.

Paths, the manifest and how it is read. How an artifact comes to be is `writer.py`'s, its files are `files.py`'s.
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
    """What an artifact holds and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: str
    inputs: dict[str, str]  # stage -> fingerprint
    input_contents: dict[str, str]  # stage -> content of the artifact that was read
    config: dict[str, Any]  # the fields that count, by dotted name
    files: dict[str, FileRecord]
    rows: int
    metrics: dict[str, float]
    details: dict[str, Any]  # what the consumers of this stage need to know beyond the files
    seconds: float  # over all attempts
    git_sha: str | None
    image_digest: str | None
    created: str

    @property
    def name(self) -> str:
        """STAGE/FINGERPRINT, short: what people call it, and its folder at the root."""
        return artifact_path(self.stage, self.fingerprint)

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
    """The manifest, or None when nothing is committed. ContractError when it is somebody else's or not readable."""
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
        raise ContractError(f"{storage.uri(path)} is of another fingerprint", "Delete that folder and run again.")
    return manifest


def all_manifests(storage: Storage) -> list[Manifest]:
    """Every committed artifact at this root, by stage and age. ContractError for a manifest that is none."""
    found = []
    for stage in storage.folders():
        if stage.startswith("."):
            continue
        for name in storage.folders(stage):
            path = f"{stage}/{name}/manifest.json"
            try:
                found.append(Manifest.model_validate_json(storage.read(path)))
            except FileNotFoundError:
                continue  # not committed yet
            except ValidationError as error:
                raise ContractError(f"{storage.uri(path)} is not a manifest", "Take that folder away.") from error
    return sorted(found, key=lambda manifest: (manifest.stage, manifest.created))


def remove_artifact(storage: Storage, stage: str, fingerprint: str) -> None:
    """Take an artifact away, the manifest first, so that nobody takes the rest for whole."""
    storage.delete(f"{artifact_path(stage, fingerprint)}/manifest.json")
    storage.delete_folder(artifact_path(stage, fingerprint))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def git_sha() -> str | None:
    """The commit of this checkout, or of the image it was baked into; None outside of both."""
    if "DVAE_GIT_SHA" in os.environ:
        return os.environ["DVAE_GIT_SHA"]
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # installed, perhaps below somebody else's checkout
        return None
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return None
    return asked.stdout.strip() or None
