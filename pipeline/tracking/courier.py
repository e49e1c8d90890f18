"""Delivers the outbox to MLflow: events are sent in order, with their original steps and times, then deleted.

One process delivers at a time, under a lease. Delivery is idempotent, since runs are found by key and metrics by step:
a process that dies after sending events and before deleting them does no harm. What MLflow refuses for good is set
aside with its reason (`refused.py`), and holds up nothing behind it.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.markup import escape

from pipeline.artifacts import Lease
from pipeline.config import Config
from pipeline.errors import LeaseError, PipelineError
from pipeline.storage import Storage
from pipeline.tracking.errors import RefusedError
from pipeline.tracking.mlflow import MlflowWriter, tracking_uri
from pipeline.tracking.outbox import OUTBOX, Event, event_files, key_of
from pipeline.tracking.refused import Refusal, set_aside

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
        self._say, self._last_reported, self._refusals = say, "", set[str]()
        self._writer = MlflowWriter(self.uri, config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name="courier", daemon=True)
        self._thread.start()

    def _deliver_all(self) -> None:
        wait = POLL_SECONDS
        while True:
            last = self._stop.is_set()
            try:
                deliver(self.storage, self._writer, on_refusal=self._report_refusal)
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

    def _report_refusal(self, key: str, refusal: Refusal) -> None:
        """Say each reason once."""
        if self._say is not None and refusal.reason not in self._refusals:
            self._say(
                f"[yellow]![/] {escape(refusal.reason)} The run continues; what was refused is set aside "
                f"(`python -m pipeline tracking show {escape(key)}`)."
            )
        self._refusals.add(refusal.reason)

    def close(self, timeout: float) -> str | None:
        """Deliver the rest, for at most `timeout` seconds. Returns why events are left in the outbox, or None."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return self.failure or f"MLflow at {self.uri} did not accept all events within {timeout:.0f} s"
        return self.failure


def undelivered(storage: Storage) -> list[str]:
    """The keys of the runs with undelivered events."""
    return sorted(pending_events(storage))


def pending_events(storage: Storage, only: str | None = None) -> Counter[str]:
    """How many files of events are undelivered, by run; of all runs, or of the run `only` and its children."""
    return Counter(key_of(path) for path in event_files(storage, OUTBOX, only))


def deliver(
    storage: Storage,
    writer: MlflowWriter,
    only: str | None = None,
    on_refusal: Callable[[str, Refusal], None] | None = None,
) -> int:
    """Send the pending events, oldest first, and delete them; returns the number of files that are dealt with.

    Events that MLflow refuses are set aside, each told to `on_refusal` with its run's key. Undelivered events stay.
    TrackingError if MLflow is unavailable or denies access; LeaseError if another process is delivering and does not
    finish within 90 s.
    """
    with _delivering:
        if not event_files(storage, OUTBOX, only):
            return 0
        with _delivery_lease(storage) as check_lease:
            writer.begin()
            delivered = 0
            for key, files in _batches(storage, event_files(storage, OUTBOX, only)):
                check_lease()
                for refusal in _send(storage, writer, key, files):
                    if on_refusal is not None:
                        on_refusal(key, refusal)
                for path in files:
                    storage.delete(path)
                delivered += len(files)
            return delivered


def _send(storage: Storage, writer: MlflowWriter, key: str, files: dict[str, list[Event]]) -> list[Refusal]:
    """Send the events of some files. If MLflow refuses, one after the other, and what it refuses is set aside."""
    try:
        writer.send(key, [event for events in files.values() for event in events], storage)
        return []
    except RefusedError:
        found = list[Refusal]()
        for path, events in files.items():
            refusals = [refusal for event in events if (refusal := _send_one(storage, writer, key, event)) is not None]
            if refusals:
                set_aside(storage, path, refusals)
            found += refusals
        return found


def _send_one(storage: Storage, writer: MlflowWriter, key: str, event: Event) -> Refusal | None:
    try:
        writer.send(key, [event], storage)
        return None
    except RefusedError as error:
        return Refusal(str(error), event)


def _batches(storage: Storage, pending: Iterable[str]) -> Iterator[tuple[str, dict[str, list[Event]]]]:
    """The key and the events by file of what is sent at once: one file, or consecutive ones of one run's metrics."""
    key, files = "", dict[str, list[Event]]()
    for path in pending:
        try:
            more: list[Event] = [json.loads(line) for line in storage.read(path).splitlines()]
        except FileNotFoundError:
            continue  # deleted by the previous holder of the lease
        known = [event for events in files.values() for event in events]
        joins = key == key_of(path) and len(known) + len(more) <= _BATCH_EVENTS and _are_metrics([*known, *more])
        if files and not joins:
            yield key, files
            files = {}
        key = key_of(path)
        files[path] = more
    if files:
        yield key, files


def _are_metrics(events: Iterable[Event]) -> bool:
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
