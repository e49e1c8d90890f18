"""Checkpoints of a trainer: the whole state in one safetensors file and one JSON file, without pickle.

The JSON file is written last and contains the hash of the other: a checkpoint is complete if they match. Ray Train's
checkpoints are not used, since Ray updates its record of them in place: a kill during the update would lose them all.
"""

import hashlib
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import ContractError
from pipeline.storage import Storage

_TENSOR = "__tensor__"
_ITEMS = "__items__"  # a dict with keys that are not strings, which JSON would convert


def flatten_state(state: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested state as a JSON tree and its tensors, on the CPU.

    Dicts, lists, tuples, numbers, strings, None and tensors; TypeError for anything else. Tuples are restored as lists.
    """
    if isinstance(state, Tensor):
        return {_TENSOR: name}, {name: state.detach().to("cpu", copy=True).contiguous()}
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


class Checkpoints:
    """The checkpoints in one folder, of which the newest `keep` are kept. A background thread writes them."""

    def __init__(self, storage: Storage, folder: str, keep: int) -> None:
        self.storage, self.folder, self.keep = storage, folder, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._seconds = 0.0  # duration of the last write

    def steps(self) -> list[int]:
        """The steps with a checkpoint, complete or not, newest first."""
        return sorted((int(name) for name in self.storage.folders(self.folder)), reverse=True)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state now and write it in the background. Raises an error of the previous write."""
        tree, tensors = flatten_state(state)
        self.wait()
        self._pending = self._writer.submit(self._write, step, tree, tensors)

    def wait(self) -> None:
        """Wait until the last write is done; raises its error."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def would_finish_by(self, end: float) -> bool:
        """Whether a checkpoint saved now would be written by `end` (seconds since the epoch), as fast as the last one.

        False while another write is in progress.
        """
        return (self._pending is None or self._pending.done()) and time.time() + self._seconds < end

    def _write(self, step: int, tree: Any, tensors: dict[str, Tensor]) -> None:
        begin = time.monotonic()
        data = save(tensors)
        digest = hashlib.sha256(data).hexdigest()
        self.storage.write(f"{self._path(step)}/state.safetensors", data)
        self.storage.write(f"{self._path(step)}/state.json", json.dumps({"sha256": digest, "state": tree}).encode())
        for old in self.steps()[self.keep :]:
            self.storage.delete(f"{self._path(old)}/state.json")
            self.storage.delete_folder(self._path(old))
        self._seconds = time.monotonic() - begin

    def _path(self, step: int) -> str:
        return f"{self.folder}/{step:09d}"

    def newest(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return next((step for step in self.steps() if self._verified(step)), None)

    def _verified(self, step: int) -> tuple[Any, bytes] | None:
        """Tree and serialized tensors of a checkpoint; None if a file is missing, cut off, or not what was saved."""
        try:
            record = json.loads(self.storage.read(f"{self._path(step)}/state.json"))
            data = self.storage.read(f"{self._path(step)}/state.safetensors")
            return (record["state"], data) if hashlib.sha256(data).hexdigest() == record["sha256"] else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def load(self, step: int) -> dict[str, Any]:
        """The state saved at `step`, with tensors on the CPU. ContractError if the checkpoint is incomplete."""
        verified = self._verified(step)
        if verified is None:
            raise ContractError(
                f"{self.storage.uri(self._path(step))} is not a complete checkpoint",
                "Delete that folder and run again.",
            )
        tree, data = verified
        state = unflatten_state(tree, load(data))
        assert isinstance(state, dict)
        return state
