"""The device time of a training: seconds times workers, over all of its attempts, however many workers each had.

It is kept in the work folder, a file an attempt, and never in a checkpoint: states hold no clock times.
"""

import time

from pipeline.storage import Storage


class DeviceTime:
    """The device time of an attempt from now on, and of all attempts before it up to their last checkpoints."""

    def __init__(self, storage: Storage, work: str, workers: int) -> None:
        self._storage, self._folder, self._workers = storage, f"{work}/device-seconds", workers
        self._began, self._path = time.monotonic(), f"{self._folder}/{time.time_ns()}"

    def write(self) -> None:
        seconds = (time.monotonic() - self._began) * self._workers
        self._storage.write(self._path, f"{seconds:.3f}".encode())

    def total(self) -> float:
        """Device-seconds of all attempts, this one up to now."""
        self.write()
        return sum(float(self._storage.read(entry.path)) for entry in self._storage.list(self._folder))
