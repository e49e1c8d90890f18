"""Checkpoints of a trainer: the whole state in one safetensors file and one JSON file, without pickle.

The JSON file is written last and contains the hash of the other: a checkpoint is complete if they match. Ray Train's
checkpoints are not used, since Ray updates its record of them in place: a kill during the update would lose them all.
How several ranks resume from one is in `restore.py`.
"""

import fcntl
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pipeline.artifacts import ArtifactWriter, FileRecord, Hashed, hash_file
from pipeline.errors import ContractError, StorageError
from pipeline.storage import Storage, cache_folder, storage_errors
from pipeline.training.tensor_file import HostBuffer, file_blocks

_log = logging.getLogger(__name__)

_TENSORS, _TEXT = "state.safetensors", "state.json"
_TENSOR = "__tensor__"
_ITEMS = "__items__"  # a dict with keys that are not strings, which JSON would convert


def flatten_state(state: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested state as a JSON tree and its tensors, by reference.

    Dicts, lists, tuples, numbers, strings, None and tensors; TypeError for anything else. Tuples are restored as lists.
    """
    if isinstance(state, Tensor):
        return {_TENSOR: name}, {name: state}
    if isinstance(state, dict):
        pairs = [(key, flatten_state(value, f"{name}/{key}")) for key, value in state.items()]
        tensors = {path: tensor for _, (_, below) in pairs for path, tensor in below.items()}
        if all(isinstance(key, str) for key in state):
            return {key: tree for key, (tree, _) in pairs}, tensors
        return {_ITEMS: [[key, tree] for key, (tree, _) in pairs]}, tensors
    if isinstance(state, (list, tuple)):
        parts = [flatten_state(value, f"{name}/{index}") for index, value in enumerate(state)]
        return [tree for tree, _ in parts], {path: tensor for _, below in parts for path, tensor in below.items()}
    if state is None or isinstance(state, (bool, int, float, str)):
        return state, {}
    raise TypeError(f"{name}: a {type(state).__name__} cannot be stored in a checkpoint")


def unflatten_state(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten_state`."""
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        if _ITEMS in tree:
            return {key: unflatten_state(value, tensors) for key, value in tree[_ITEMS]}
        return {key: unflatten_state(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unflatten_state(value, tensors) for value in tree]
    return tree


def add_state(writer: ArtifactWriter, folder: str, step: int, state: dict[str, Any]) -> None:
    """Write a state into an artifact as a checkpoint: `Checkpoints(storage, f"{artifact}/{folder}", ...)` reads it.

    One tensor at a time is in main memory.
    """
    tree, tensors = flatten_state(state)
    place = f"{folder}/{step:09d}"
    writer.add_stream(file_blocks(tensors), f"{place}/{_TENSORS}")
    writer.add_bytes(_completing(writer.files[f"{place}/{_TENSORS}"], tree), f"{place}/{_TEXT}")


def _completing(tensors: FileRecord, tree: Any) -> bytes:
    """The JSON file, which completes a checkpoint."""
    return json.dumps({"sha256": tensors.sha256, "state": tree}).encode()


class _DamagedError(Exception):
    """A checkpoint that was completed, but is not what was written. The text says what is wrong."""


@dataclass(frozen=True)
class NodeCopy:
    """A checkpoint as rank 0 has read it, with its tensors in a file that this node can map."""

    step: int
    tree: Any
    record: FileRecord
    path: Path

    def state(self) -> dict[str, Any]:
        """The state. Its tensors are mapped from the file, even if that is deleted: copy them, and let them go."""
        state = unflatten_state(self.tree, load_file(self.path))
        assert isinstance(state, dict)
        return state


class Checkpoints:
    """The checkpoints in one folder, of which the newest `keep` are kept. A background thread writes them.

    Checkpoints of a remote storage are downloaded to `disk`, a folder on this node.
    """

    def __init__(self, storage: Storage, folder: str, keep: int, disk: Path | None = None) -> None:
        self.storage, self.folder, self.keep = storage, folder, keep
        self.disk = disk or cache_folder() / "checkpoints"
        self._buffer = HostBuffer()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._seconds = 0.0  # duration of the last write

    # --- writing ---

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state to main memory now and write it in the background.

        Waits for the previous write, whose memory is used again, and raises its error.
        """
        self.wait()
        tree, tensors = flatten_state(state)
        self._pending = self._writer.submit(self._write, step, tree, self._buffer.copy(tensors))

    def wait(self) -> None:
        """Wait until the last write is done; raises its error."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def would_finish_by(self, end: float) -> bool:
        """Whether a checkpoint saved now would be written by `end` (seconds since the epoch), as fast as the last one.

        False while another write is in progress.
        """
        return (self._pending is None or self._pending.done()) and time.time() + self._seconds < end

    def _write(self, step: int, tree: Any, file: list[memoryview]) -> None:
        begin = time.monotonic()
        self.storage.delete(self._text(step))  # of a broken one: it would not match the new tensors
        content = Hashed(file)
        self.storage.write_stream(self._tensors(step), content)
        self.storage.write(self._text(step), _completing(content.record, tree))
        self._remove_all_but_newest(step)
        self._seconds = time.monotonic() - begin

    def _remove_all_but_newest(self, written: int) -> None:
        """Remove old checkpoints, and incomplete ones, also of later steps: they were not resumed from."""
        complete = [step for step in self.steps() if step <= written and self.storage.exists(self._text(step))]
        for step in set(self.steps()) - set(complete[: self.keep]):
            self.storage.delete(self._text(step))
            self.storage.delete_folder(self._path(step))

    def _path(self, step: int) -> str:
        return f"{self.folder}/{step:09d}"

    def _text(self, step: int) -> str:
        return f"{self._path(step)}/{_TEXT}"

    def _tensors(self, step: int) -> str:
        return f"{self._path(step)}/{_TENSORS}"

    # --- reading ---

    def steps(self) -> list[int]:
        """The steps with a checkpoint, complete or not, newest first."""
        return sorted((int(name) for name in self.storage.folders(self.folder) if name.isdecimal()), reverse=True)

    def newest(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none. Errors as `fetch_newest`."""
        with ExitStack() as until:
            copy = self.fetch_newest(until)
            return copy.step if copy else None

    def load(self, step: int) -> dict[str, Any]:
        """The state saved at `step`, as `NodeCopy.state`. ContractError if the checkpoint is incomplete."""
        try:
            with ExitStack() as until:
                return self._fetch(step, until).state()
        except _DamagedError as error:
            raise ContractError(
                f"{self.storage.uri(self._path(step))} is not a complete checkpoint: {error}",
                "Delete that folder and run again.",
            ) from error

    def fetch_newest(self, until: ExitStack) -> NodeCopy | None:
        """The newest complete checkpoint, verified; None if none was ever completed. Downloads are kept `until` then.

        Damaged ones are passed over. ContractError if all are: beginning at the first step would replace them.
        """
        damage = list[str]()
        for step in self.steps():
            if self.storage.exists(self._text(step)):  # else it was cut off while written or removed
                try:
                    return self._fetch(step, until)
                except _DamagedError as error:
                    damage.append(f"{self.storage.uri(self._path(step))} is damaged ({error})")
                    _log.warning("%s and passed over", damage[-1])
        if damage:
            raise ContractError(
                f"no checkpoint to resume from: {damage[0]}, and so is every other",
                f"Restore it, or delete {self.storage.uri(self.folder)} to train from the first step.",
            )
        return None

    def fetch_same(self, chosen: NodeCopy, until: ExitStack) -> NodeCopy:
        """The checkpoint that rank 0 has chosen, on another node. StorageError if this node reads something else.

        It is hashed again only if it is downloaded: files in a mounted folder have been verified by rank 0.
        """
        try:
            return self._fetch(chosen.step, until, chosen.record)
        except _DamagedError as error:
            raise StorageError(
                f"node {platform.node()} does not read the checkpoint at {self.storage.uri(self._path(chosen.step))} "
                f"that the first worker resumes from: {error}",
                "Mount the root's folder on every node, or use an s3:// root.",
            ) from error

    def _fetch(self, step: int, until: ExitStack, verified: FileRecord | None = None) -> NodeCopy:
        """The tensors as a file with the right hash; with the right size if it is the `verified` one. _DamagedError."""
        sha256, tree = self._read_text(step)
        local = self.storage.local_path(self._tensors(step))
        with ExitStack() as own:
            try:
                path = local or self._download(step, own)
                with storage_errors(str(path)):
                    record = FileRecord(bytes=path.stat().st_size, sha256=sha256)
                    record = record if local and verified else hash_file(path)
            except FileNotFoundError:
                raise _DamagedError("state.safetensors is missing") from None
            if record != (verified or record) or record.sha256 != sha256:
                raise _DamagedError("state.safetensors is not what was written")
            until.push(own.pop_all())
        return NodeCopy(step, tree, record, path)

    def _read_text(self, step: int) -> tuple[str, Any]:
        try:
            text = json.loads(self.storage.read(self._text(step)))
            return str(text["sha256"]), text["state"]
        except FileNotFoundError:
            raise _DamagedError("state.json is missing") from None
        except (ValueError, KeyError, TypeError):
            raise _DamagedError("state.json is not what was written") from None

    def _download(self, step: int, until: ExitStack) -> Path:
        """Download the tensors into a folder of this process, which is deleted `until` then, or by a later process."""
        with storage_errors(str(self.disk)):
            self.disk.mkdir(parents=True, exist_ok=True)
            with _locked(self.disk, wait=True):
                _remove_abandoned(self.disk)
                folder = Path(until.enter_context(tempfile.TemporaryDirectory(dir=self.disk)))
                until.enter_context(_locked(folder))
        path = folder / _TENSORS
        self.storage.download(self._tensors(step), path)
        return path


@contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process. BlockingIOError if another one does, unless `wait`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(disk: Path) -> None:
    """Delete the downloads of this user's processes that were killed. The caller holds the lock of `disk`."""
    for folder in disk.iterdir():
        with suppress(BlockingIOError, FileNotFoundError, PermissionError), _locked(folder):
            shutil.rmtree(folder)
