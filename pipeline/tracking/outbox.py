"""The outbox: events of a run (metrics, parameters, tags, files), as small files at the root, for later delivery.

The driver and rank 0 of a trainer post here and never wait for MLflow. Delivery is in `courier.py`.
"""

import json
import os
import secrets
import time
from typing import Any

from pipeline.storage import Storage

OUTBOX = ".work/tracking"

_ROOT_ID = ".work/tracking-id"

Event = dict[str, Any]


class Outbox:
    """Posts events of one run: a stage's (`PIPELINE/STAGE`) or the pipeline's (`PIPELINE`)."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage, self.key = storage, key
        self._posted = 0

    def post(self, *events: Event) -> None:
        """Write the events to one file, whose name sorts after all earlier ones."""
        self._posted += 1
        name = f"{time.time_ns():020d}-{os.getpid()}-{self._posted:06d}.jsonl"
        lines = "".join(json.dumps(event) + "\n" for event in events)
        self.storage.write(f"{OUTBOX}/{self.key}/{name}", lines.encode())

    def open(self, name: str, tags: dict[str, str], parent: str | None = None) -> None:
        self.post({"kind": "open", "name": name, "tags": tags, "parent": parent, "time": _milliseconds()})

    def close(self, status: str) -> None:
        """End the run; `status` is FINISHED, FAILED or KILLED."""
        self.post({"kind": "close", "status": status, "time": _milliseconds()})

    def params(self, values: dict[str, Any]) -> None:
        self.post({"kind": "params", "values": {name: str(value) for name, value in values.items()}})

    def tags(self, values: dict[str, str]) -> None:
        self.post({"kind": "tags", "values": values})

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.post(metric_event(values, step))

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        self.post({"kind": "dataset", "name": name, "digest": digest, "source": source, "context": context})

    def file(self, path: str, folder: str) -> None:
        """Attach a file that is stored at the root (in an artifact) to the run."""
        self.post({"kind": "file", "path": path, "folder": folder})


def metric_event(values: dict[str, float], step: int) -> Event:
    return {"kind": "metrics", "values": values, "step": step, "time": _milliseconds()}


def root_id(storage: Storage, begun: bool) -> str:
    """A word that tells the runs of this root from those of others in one MLflow, made at its first run and kept.

    It is empty at a root that had `begun` before there were such words, so that its runs are found again.
    """
    try:
        return storage.read(_ROOT_ID).decode()
    except FileNotFoundError:
        storage.write_new(_ROOT_ID, b"" if begun else secrets.token_hex(4).encode())
        return storage.read(_ROOT_ID).decode()  # another driver may have been first


def event_files(storage: Storage, folder: str, only: str | None) -> list[str]:
    """The files of events below `folder`, oldest first; of all runs, or of the run `only` and its children."""
    found = [entry.path for entry in storage.list(folder) if entry.path.endswith(".jsonl")]
    if only is not None:
        found = [path for path in found if key_of(path) == only or key_of(path).startswith(f"{only}/")]
    return sorted(found, key=lambda path: path.rpartition("/")[2])


def key_of(path: str) -> str:
    """The key of the run that a file of events belongs to, in the outbox or set aside."""
    return path.split("/", OUTBOX.count("/") + 1)[-1].rpartition("/")[0]


def _milliseconds() -> int:
    return int(time.time() * 1000)
