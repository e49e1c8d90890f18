"""From the outbox to MLflow: events are replayed in order, with their own steps and times, and removed on arrival.

An outage loses nothing. Whoever delivers does so alone, under a lease; one that dies before it could remove what it
sent does no harm: runs are found by a key, metrics by step.
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
from pipeline.tracking.mlflow import Post, tracking_uri
from pipeline.tracking.outbox import OUTBOX

POLL_SECONDS = 1.0
_TURN_SECONDS = 90.0  # to wait for another process that delivers at this root; longer than a dead one's lease
_CHECK_SECONDS = 10.0  # between two looks whether the lease is still ours
_TOGETHER = 500  # events that go at once: an hour's worth is replayed in seconds
_log = logging.getLogger(__name__)
_delivering = threading.Lock()  # the courier and `register` deliver from one process


class Courier:
    """Delivers outboxes to MLflow, in a thread of the driver. MLflow being away only makes it wait.

    `say` hears once of each new kind of trouble.
    """

    def __init__(self, storage: Storage, config: Config, say: Callable[[str], None] | None = None) -> None:
        self.storage = storage
        self.uri = tracking_uri(config)
        self.failure: str | None = None  # why not everything has arrived
        self._say, self._said = say, ""
        self._post = Post(self.uri, config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name="courier", daemon=True)
        self._thread.start()

    def _deliver_all(self) -> None:
        wait = POLL_SECONDS
        while True:
            last = self._stop.is_set()
            try:
                deliver(self.storage, self._post)
                self.failure, wait = None, POLL_SECONDS
            except LeaseError as error:  # another delivers, these events too; not the end of it
                self.failure, last = str(error), False
            except Exception as error:  # a bug of ours or of MLflow's client must not end it: kept, said, tried again
                self._note(error)
                wait = min(30.0, 2 * wait)
            if last:
                return
            self._stop.wait(wait)

    def _note(self, error: Exception) -> None:
        self.failure = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        _log.debug("MLflow did not take an event", exc_info=True)
        what = error.what if isinstance(error, PipelineError) else self.failure
        if self._say is not None and what != self._said:
            self._say(f"[yellow]![/] {escape(self.failure)} The run goes on, and what is not delivered waits.")
        self._said = what

    def close(self, timeout: float) -> str | None:
        """Deliver the rest, for at most `timeout` seconds. What is left stays in the outbox; says why."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return self.failure or f"MLflow at {self.uri} did not take everything within {timeout:.0f} s"
        return self.failure


def undelivered(storage: Storage) -> list[str]:
    """The keys of the runs whose events still wait."""
    return sorted({_key_of(path) for path in _waiting(storage, None)})


def _key_of(path: str) -> str:
    return path.removeprefix(OUTBOX + "/").rpartition("/")[0]


def _waiting(storage: Storage, only: str | None) -> list[str]:
    """The files of events, the oldest first; those of one run and its children, or all."""
    found = [entry.path for entry in storage.list(OUTBOX) if entry.path.endswith(".jsonl")]
    if only is not None:
        found = [path for path in found if _key_of(path) == only or _key_of(path).startswith(f"{only}/")]
    return sorted(found, key=lambda path: path.rpartition("/")[2])


def deliver(storage: Storage, post: "Post", only: str | None = None) -> int:
    """Replay the waiting events, oldest first, removing what has arrived. Returns how many files went.

    What was not delivered stays. TrackingError when MLflow is away or lets nobody in; RefusedError, at the end, when it
    does not take the events of some run; LeaseError when another process delivers and does not come to an end.
    """
    with _delivering:
        if not _waiting(storage, only):
            return 0
        with _turn(storage) as still_mine:
            post.begin()
            return _deliver(storage, post, _waiting(storage, only), still_mine)


def _deliver(storage: Storage, post: "Post", waiting: Iterable[str], still_mine: Callable[[], None]) -> int:
    delivered, refused = 0, dict[str, RefusedError]()
    for key, paths, events in _parcels(storage, waiting):
        if key in refused:
            continue
        still_mine()
        try:
            post.send(key, events, storage)
        except RefusedError as error:
            place = storage.uri(f"{OUTBOX}/{key}")
            refused[key] = RefusedError(f"{key}: {error.what}", f"Its events stay; to give them up, delete {place}.")
            continue
        for path in paths:
            storage.delete(path)
        delivered += len(paths)
    for first in refused.values():
        raise first
    return delivered


def _parcels(storage: Storage, waiting: Iterable[str]) -> Iterator[tuple[str, list[str], list[dict[str, Any]]]]:
    """Key, files and events of what goes at once: a file, or neighbours of one run with nothing but metrics."""
    key, paths, events = "", list[str](), list[dict[str, Any]]()
    for path in waiting:
        try:
            more = [json.loads(line) for line in storage.read(path).splitlines()]
        except FileNotFoundError:
            continue  # its last deliverer was slow to die, and has removed it after all
        joins = key == _key_of(path) and len(events) + len(more) <= _TOGETHER and _are_metrics([*events, *more])
        if paths and not joins:
            yield key, paths, events
            paths, events = [], []
        key, paths, events = _key_of(path), [*paths, path], [*events, *more]
    if paths:
        yield key, paths, events


def _are_metrics(events: Iterable[dict[str, Any]]) -> bool:
    return all(event["kind"] == "metrics" for event in events)


@contextmanager
def _turn(storage: Storage) -> Iterator[Callable[[], None]]:
    """The right to deliver at this root, which one process has at a time. Yields a check that it is still ours."""
    end = time.monotonic() + _TURN_SECONDS
    while True:
        try:
            lease = Lease(storage, "delivery", "to-mlflow")
            break
        except LeaseError:
            if time.monotonic() > end:
                raise
        time.sleep(POLL_SECONDS)
    checked = time.monotonic()

    def still_mine() -> None:
        nonlocal checked
        if time.monotonic() - checked > _CHECK_SECONDS:
            lease.check()
            checked = time.monotonic()

    try:
        yield still_mine
    finally:
        lease.release(finished=True)
