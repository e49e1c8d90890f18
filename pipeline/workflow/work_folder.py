"""Which inputs the contents of a stage's work folder were made from. Contents made from others are never continued.

An input changes under the same fingerprint when it is repaired, on other hardware or after its files were damaged.
"""

import json
from collections.abc import Callable, Mapping

from pipeline.artifacts import Manifest
from pipeline.storage import Storage

_INPUTS = "inputs.json"
_KEPT = {_INPUTS, "lease.json"}


def changed_inputs(storage: Storage, work: str, contents: Mapping[str, str]) -> list[str]:
    """The inputs whose content (`Manifest.content`) is not the one that the work folder was begun with."""
    try:
        recorded = json.loads(storage.read(f"{work}/{_INPUTS}"))
    except FileNotFoundError:
        return []  # not begun
    return sorted(name for name, content in contents.items() if recorded.get(name) != content)


def checkpoint_step(storage: Storage, work: str) -> int | None:
    """The step of the newest complete checkpoint that a training has left in its work folder; None if there is none.

    Checkpoints are as `pipeline.training` writes them; what their tensors hold is not looked at.
    """
    folder = f"{work}/checkpoints"
    steps = sorted((int(name) for name in storage.folders(folder) if name.isdecimal()), reverse=True)
    return next((step for step in steps if storage.exists(f"{folder}/{step:09d}/state.json")), None)


def begin_work(
    storage: Storage, stage: str, work: str, inputs: Mapping[str, Manifest], say: Callable[[str], None]
) -> None:
    """Record the inputs in the work folder, which is emptied first, but for the lease, if they have changed."""
    contents = {name: manifest.content for name, manifest in inputs.items()}
    if changed := changed_inputs(storage, work, contents):
        say(f"{stage}: what an earlier attempt left is discarded, as {' and '.join(changed)} has changed since")
        _empty(storage, work)
    storage.write(f"{work}/{_INPUTS}", json.dumps(contents).encode())


def _empty(storage: Storage, work: str) -> None:
    for folder in storage.folders(work):
        storage.delete_folder(f"{work}/{folder}")
    for entry in list(storage.list(work)):
        if entry.path.removeprefix(f"{work}/") not in _KEPT:
            storage.delete(entry.path)
