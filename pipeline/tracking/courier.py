"""Delivers the outbox to MLflow: events are sent in order, with their original steps and times, then deleted.

One process delivers at a time, under a lease. Delivery is idempotent, since runs are found by key and metrics by step:
a process that dies after sending events and before deleting them does no harm.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.markup import escape

from pipeline.artifacts import Lease
from pipeline.config import Config
from pipeline.errors import LeaseError, PipelineError
from pipeline.storage import Storage
from pipeline.tracking.errors import RefusedError
from pipeline.tracking.mlflow import MlflowWriter, tracking_uri
from pipeline.tracking.outbox import OUTBOX

POLL_SECONDS = 1.0
_LEASE_WAIT_SECONDS = 90.0  # to wait for another process that delivers; longer than a dead one's lease lasts
_CHECK_SECONDS = 10.0  # between two checks of the lease
_BATCH_EVENTS = 500  # sent at once, so that an hour's events take seconds
_log = logging.getLogger(__name__)
_delivering = threading.Lock()  # the courier and `register` deliver from one process


class Courier:
    """Delivers outboxes to MLflow in a thread of the driver; retries while MLflow is unavailable.

    `say` receives one line for each new kind of failure.
    """

    def __init__(self, storage: Storage, config: Config, say: Callable[[str], None] | None = None) -> None:
        self.storage = storage
        self.uri = tracking_uri(config)
        self.failure: str | None = None  # why events are undelivered
        self._say, self._last_reported = say, ""
        self._writer = MlflowWriter(self.uri, config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name="courier", daemon=True)
        self._thread.start()

    def _deliver_all(self) -> None:
        wait = POLL_SECONDS
        while True:
            last = self._stop.is_set()
            try:
                deliver(self.storage, self._writer)
                self.failure, wait = None, POLL_SECONDS
            except LeaseError as error:  # another process delivers; retry, even after `close`
                self.failure, last = str(error), False
            except Exception as error:  # even a bug, here or in MLflow's client: report and retry
                self._record_failure(error)
                wait = min(30.0, 2 * wait)
            if last:
                return
            self._stop.wait(wait)

    def _record_failure(self, error: Exception) -> None:
        self.failure = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        _log.debug("MLflow did not accept an event", exc_info=True)
        what = error.what if isinstance(error, PipelineError) else self.failure
        if self._say is not None and what != self._last_reported:
            self._say(f"[yellow]![/] {escape(self.failure)} The run continues; undelivered events stay in the outbox.")
        self._last_reported = what

    def close(self, timeout: float) -> str | None:
        """Deliver the rest, for at most `timeout` seconds. Returns why events are left in the outbox, or None."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return self.failure or f"MLflow at {self.uri} did not accept all events within {timeout:.0f} s"
        return self.failure


def undelivered(storage: Storage) -> list[str]:
    """The keys of the runs with undelivered events."""
    return sorted({_key_of(path) for path in _pending(storage, None)})


def _key_of(path: str) -> str:
    return path.removeprefix(OUTBOX + "/").rpartition("/")[0]


def _pending(storage: Storage, only: str | None) -> list[str]:
    """The undelivered event files, oldest first; of all runs, or of the run `only` and its children."""
    found = [entry.path for entry in storage.list(OUTBOX) if entry.path.endswith(".jsonl")]
    if only is not None:
        found = [path for path in found if _key_of(path) == only or _key_of(path).startswith(f"{only}/")]
    return sorted(found, key=lambda path: path.rpartition("/")[2])


def deliver(storage: Storage, writer: "MlflowWriter", only: str | None = None) -> int:
    """Send the pending events, oldest first, and delete them; returns the number of files delivered.

    Undelivered events stay. TrackingError if MLflow is unavailable or denies access; RefusedError, at the end, if it
    rejects the events of a run; LeaseError if another process is delivering and does not finish within 90 s.
    """
    with _delivering:
        if not _pending(storage, only):
            return 0
        with _delivery_lease(storage) as check_lease:
            writer.begin()
            return _deliver(storage, writer, _pending(storage, only), check_lease)


def _deliver(storage: Storage, writer: "MlflowWriter", pending: Iterable[str], check_lease: Callable[[], None]) -> int:
    delivered, refused = 0, dict[str, RefusedError]()
    for key, paths, events in _batches(storage, pending):
        if key in refused:
            continue
        check_lease()
        try:
            writer.send(key, events, storage)
        except RefusedError as error:
            place = storage.uri(f"{OUTBOX}/{key}")
            refused[key] = RefusedError(f"{key}: {error.what}", f"Delete {place} to discard its events.")
            continue
        for path in paths:
            storage.delete(path)
        delivered += len(paths)
    for first in refused.values():
        raise first
    return delivered


def _batches(storage: Storage, pending: Iterable[str]) -> Iterator[tuple[str, list[str], list[dict[str, Any]]]]:
    """(key, files, events) to send at once: one file, or consecutive files of one run with only metrics."""
    key, paths, events = "", list[str](), list[dict[str, Any]]()
    for path in pending:
        try:
            more = [json.loads(line) for line in storage.read(path).splitlines()]
        except FileNotFoundError:
            continue  # deleted by the previous holder of the lease
        joins = key == _key_of(path) and len(events) + len(more) <= _BATCH_EVENTS and _are_metrics([*events, *more])
        if paths and not joins:
            yield key, paths, events
            paths, events = [], []
        key, paths, events = _key_of(path), [*paths, path], [*events, *more]
    if paths:
        yield key, paths, events


def _are_metrics(events: Iterable[dict[str, Any]]) -> bool:
    return all(event["kind"] == "metrics" for event in events)


@contextmanager
def _delivery_lease(storage: Storage) -> Iterator[Callable[[], None]]:
    """Hold the lease on delivery at this root. Yields a function that raises LeaseError if it was taken over."""
    end = time.monotonic() + _LEASE_WAIT_SECONDS
    while True:
        try:
            lease = Lease(storage, "delivery", "to-mlflow")
            break
        except LeaseError:
            if time.monotonic() > end:
                raise
        time.sleep(POLL_SECONDS)
    checked = time.monotonic()

    def check_lease() -> None:
        nonlocal checked
        if time.monotonic() - checked > _CHECK_SECONDS:
            lease.check()
            checked = time.monotonic()

    try:
        yield check_lease
    finally:
        lease.release(finished=True)
