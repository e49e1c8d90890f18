"""What MLflow refused for good: events set aside at the root with their reason, until they are sent again or dropped.

Their files have the names that they had in the outbox, so that what is set aside twice is there once.
"""

import json
from collections import Counter
from typing import NamedTuple

from pipeline.storage import Storage
from pipeline.tracking.outbox import OUTBOX, Event, event_files, key_of

REFUSED = ".work/tracking-refused"


class Refusal(NamedTuple):
    """An event, and why MLflow did not take it."""

    reason: str
    event: Event


def set_aside(storage: Storage, path: str, refusals: list[Refusal]) -> None:
    """Keep what was refused of the file `path` of the outbox."""
    lines = "".join(json.dumps(refusal._asdict()) + "\n" for refusal in refusals)
    storage.write(REFUSED + path.removeprefix(OUTBOX), lines.encode())


def refusals(storage: Storage, only: str | None = None) -> dict[str, dict[str, Counter[str]]]:
    """How many events of each kind are set aside, by run and reason; of all runs, or of `only` and its children."""
    found = dict[str, dict[str, Counter[str]]]()
    for path in event_files(storage, REFUSED, only):
        for refusal in _read(storage, path):
            kinds = found.setdefault(key_of(path), {}).setdefault(refusal.reason, Counter())
            kinds[refusal.event["kind"]] += 1
    return found


def drop_refused(storage: Storage, only: str | None = None) -> int:
    """Delete what is set aside. Returns the number of events."""
    dropped = 0
    for path in event_files(storage, REFUSED, only):
        dropped += len(_read(storage, path))
        storage.delete(path)
    return dropped


def put_back(storage: Storage, only: str | None = None) -> int:
    """Move what is set aside back into the outbox, marked as `retried`. Returns the number of events."""
    moved = 0
    for path in event_files(storage, REFUSED, only):
        refused = _read(storage, path)
        lines = "".join(json.dumps({**refusal.event, "retried": True}) + "\n" for refusal in refused)
        storage.write(OUTBOX + path.removeprefix(REFUSED), lines.encode())
        storage.delete(path)
        moved += len(refused)
    return moved


def _read(storage: Storage, path: str) -> list[Refusal]:
    return [Refusal(**json.loads(line)) for line in storage.read(path).splitlines()]
