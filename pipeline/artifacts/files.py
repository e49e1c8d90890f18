"""Reads the files of an artifact and verifies them against the hashes in its manifest."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.artifacts.manifest import SHORT, FileRecord, Manifest
from pipeline.errors import ContractError
from pipeline.storage import Block, Storage

_SLICE = 16 * 1024**2  # bytes


class Hashed:
    """Blocks for `Storage.write_stream` that are hashed on the way, in slices of at most 16 MiB, without a copy."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks, self._digest, self._bytes = blocks, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[memoryview]:
        for block in self._blocks:
            view = memoryview(block).cast("B")
            for start in range(0, len(view), _SLICE):
                piece = view[start : start + _SLICE]
                self._digest.update(piece)
                self._bytes += len(piece)
                yield piece

    @property
    def record(self) -> FileRecord:
        """Of what has been iterated over."""
        return FileRecord(bytes=self._bytes, sha256=self._digest.hexdigest())


def hash_file(path: Path) -> FileRecord:
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256")
    return FileRecord(bytes=path.stat().st_size, sha256=digest.hexdigest())


def hash_stored(storage: Storage, path: str) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with storage.open(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def broken_files(storage: Storage, manifest: Manifest) -> list[str]:
    """The files that are missing or do not match their hash in the manifest. Reads every file."""
    folder = manifest.name
    broken = []
    for path, record in sorted(manifest.files.items()):
        try:
            if hash_stored(storage, f"{folder}/{path}") != record:
                broken.append(path)
        except FileNotFoundError:
            broken.append(path)
    return broken


def read_checked(storage: Storage, manifest: Manifest, name: str) -> bytes:
    """The content of one file of an artifact. ContractError if it is missing or does not match the manifest."""
    path = f"{manifest.name}/{name}"
    try:
        data = storage.read(path)
    except FileNotFoundError:
        raise _broken(storage, manifest, name) from None
    if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
        raise _broken(storage, manifest, name)
    return data


@contextmanager
def checked_copy(storage: Storage, manifest: Manifest, name: str) -> Iterator[Path]:
    """A local path of one file of an artifact, its hash verified; a downloaded file is deleted at the end of the block.

    ContractError if it is missing or does not match the manifest. Memory does not grow with the file.
    """
    with TemporaryDirectory(prefix="dvae-") as folder:
        (path,) = local_copies(storage, manifest, [name], Path(folder)).values()
        yield path


def _broken(storage: Storage, manifest: Manifest, name: str) -> ContractError:
    artifact = manifest.name
    return ContractError(
        f"{storage.uri(artifact)}/{name} is missing or does not match its manifest",
        f"Run `python -m pipeline artifact repair {artifact} --root {storage.root}`.",
    )


def local_copies(storage: Storage, manifest: Manifest, names: Iterable[str], target: Path) -> dict[str, Path]:
    """Local paths of an artifact's files, downloaded to `target` if the storage is remote; hashes are verified.

    ContractError if a file is missing or does not match the manifest.
    """
    paths = {}
    for name in names:
        record = manifest.files[name]
        path = storage.local_path(f"{manifest.name}/{name}")
        if path is None:
            path = target / record.sha256[:SHORT] / Path(name).name
            if not path.exists():
                partial = path.with_name(f"{path.name}.{os.getpid()}")
                storage.download(f"{manifest.name}/{name}", partial)
                partial.replace(path)
        if not path.exists() or hash_file(path) != record:
            raise _broken(storage, manifest, name)
        paths[name] = path
    return paths
