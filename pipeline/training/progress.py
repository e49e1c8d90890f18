"""What the driver shows of a training's workers, through a file in the work folder: they may run on other nodes.

Rank 0 writes it: its node's mirror here, the steps in `history.py`.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress

from pipeline.errors import PipelineError, StorageError
from pipeline.storage import Storage
from pipeline.training.job import Job

_WRITE_SECONDS = 2.0
_MIRRORED = {"train-tokenizer": "images", "train-sit": "latents"}


class MirrorProgress:
    """Called with the rows that are mirrored and their total; writes them every few seconds.

    Nothing is written of a mirror that was complete.
    """

    def __init__(self, storage: Storage, work: str) -> None:
        self._storage, self._path = storage, f"{work}/progress.json"
        self._last = -math.inf

    def __call__(self, rows: int, total: int) -> None:
        done = rows == total
        if (done and self._last == -math.inf) or (not done and time.monotonic() - self._last < _WRITE_SECONDS):
            return
        self._last = time.monotonic()
        with suppress(StorageError):  # this is only shown; a storage that is away is said by what needs it
            self._storage.write(self._path, json.dumps({"mirrored": rows, "total": total}).encode())


def show_progress(storage: Storage, job: Job, shown: set[str], show: Callable[..., None]) -> None:
    """Pass what rank 0 wrote last to `show`, which is `Display.progress`; nothing if it cannot be read."""
    try:
        line = json.loads(storage.read(f"{job.work}/progress.json"))
    except (FileNotFoundError, ValueError, PipelineError):
        return  # missing, or the storage is unavailable: the next call tries again
    if "mirrored" in line:
        show(line["mirrored"], line["total"], unit=_MIRRORED[job.stage], activity="mirroring")
    else:
        values = {name: value for name, value in line.items() if name in shown}
        show(int(line["step"]), job.section.steps, unit="steps", **values)
