"""Writes an artifact: its files first; then the manifest, with a conditional write under the lease, commits it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.files import Hashed, hash_file
from pipeline.artifacts.lease import Lease
from pipeline.artifacts.manifest import FileRecord, Manifest, artifact_path
from pipeline.errors import LeaseError
from pipeline.storage import Block, Storage


@dataclass(frozen=True)
class Outcome:
    """A stage's result, for the manifest."""

    files: dict[str, FileRecord]
    rows: int
    metrics: dict[str, float]
    details: dict[str, Any]


class ArtifactWriter:
    """Writes files into an artifact's folder before the commit, and records their hashes."""

    def __init__(self, storage: Storage, stage: str, fingerprint: str) -> None:
        self.storage = storage
        self.folder = artifact_path(stage, fingerprint)
        self.files: dict[str, FileRecord] = {}

    def add(self, source: Path, name: str) -> None:
        self.files[name] = hash_file(source)
        self.storage.upload(source, f"{self.folder}/{name}")

    def add_bytes(self, data: bytes, name: str) -> None:
        self.files[name] = FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self.storage.write(f"{self.folder}/{name}", data)

    def add_stream(self, blocks: Iterable[Block], name: str) -> None:
        """Write a file from its consecutive blocks, which are iterated once and not held together in memory."""
        hashed = Hashed(blocks)
        self.storage.write_stream(f"{self.folder}/{name}", hashed)
        self.files[name] = hashed.record

    def add_stored(self, name: str, record: FileRecord) -> None:
        """Record a file that a worker has already written."""
        self.files[name] = record

    def outcome(self, rows: int, metrics: dict[str, float] | None = None, **details: Any) -> Outcome:
        return Outcome(dict(self.files), rows, metrics or {}, details)


def commit(storage: Storage, manifest: Manifest, lease: "Lease") -> None:
    """Commit the artifact. LeaseError if another driver has taken the lease over."""
    folder = manifest.name
    kept = {f"{folder}/{path}" for path in ("manifest.json", *manifest.files)}
    lease.check()
    for entry in list(storage.list(folder)):
        if entry.path not in kept:
            storage.delete(entry.path)  # left by an interrupted attempt
    if not storage.write_new(f"{folder}/manifest.json", manifest.model_dump_json(indent=1).encode()):
        raise LeaseError(
            f"{storage.uri(folder)} was committed by another driver in the meantime", "Run again to use it."
        )
