"""The lease: the right of one driver at a time to work on a stage, with a heartbeat and a fencing token."""

import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
from pydantic import BaseModel

from pipeline.artifacts.manifest import work_path
from pipeline.errors import LeaseError, StorageError
from pipeline.storage import Storage

HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0  # after so long without a heartbeat the owner is taken for dead
_LOOK_SECONDS = 1.0


class Holder(BaseModel):
    """Who holds a lease, and since when."""

    owner: str  # for people: user, host and process
    machine: str  # on the same one a dead owner is known at once
    pid: int
    started: float  # when that process started; process numbers are used again
    nonce: str
    token: int  # grows with every change of owner
    heartbeat: float

    def is_dead(self) -> bool:
        if self.machine == _machine():
            try:
                process = psutil.Process(self.pid)
                alive = process.status() != psutil.STATUS_ZOMBIE
                return not alive or abs(process.create_time() - self.started) > 1.0
            except psutil.NoSuchProcess:
                return True
        return time.time() - self.heartbeat > LEASE_SECONDS


@cache
def _machine() -> str:
    """Host, boot and, on Linux, the space of process numbers: containers of one host each have their own."""
    space = Path("/proc/self/ns/pid")
    return f"{platform.node()}/{psutil.boot_time():.0f}" + (f"/{space.readlink()}" if space.is_symlink() else "")


class Lease:
    """The right to work on one stage of one fingerprint: a file with owner, heartbeat and fencing token.

    Taken and kept by conditional writes. It also keeps time: the seconds of this attempt lie beside it.
    """

    def __init__(self, storage: Storage, stage: str, fingerprint: str) -> None:
        self.storage, self.stage = storage, stage
        self.folder = work_path(stage, fingerprint)
        self.path = f"{self.folder}/lease.json"
        self.holder = self._take()
        self._begin = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{stage}", daemon=True)
        self._thread.start()

    def _take(self) -> Holder:
        process = psutil.Process()
        mine = Holder(
            owner=f"{process.username()}@{platform.node()} process {process.pid}",
            machine=_machine(),
            pid=process.pid,
            started=process.create_time(),
            nonce=secrets.token_hex(8),
            token=1,
            heartbeat=time.time(),
        )
        if self.storage.write_new(self.path, mine.model_dump_json().encode()):
            return mine
        try:
            text, tag = self.storage.read_tagged(self.path)
        except FileNotFoundError:
            raise self._lost_race() from None
        theirs = Holder.model_validate_json(text)
        if not theirs.is_dead():
            raise _taken(self.stage, theirs)
        mine = mine.model_copy(update={"token": theirs.token + 1})
        if not self.storage.replace(self.path, mine.model_dump_json().encode(), tag):
            raise self._lost_race()
        return mine

    def _lost_race(self) -> LeaseError:
        return LeaseError(f"the lease on {self.stage} changed hands just now", "Run again to see whose it is.")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(StorageError, FileNotFoundError):  # a lease outlives several missed beats; `check` decides
                self.renew()

    def renew(self) -> None:
        """Show a sign of life, unless the lease has gone to somebody else."""
        text, tag = self.storage.read_tagged(self.path)
        if is_held(text, self.holder.nonce):
            alive = self.holder.model_copy(update={"heartbeat": time.time()})
            self.storage.replace(self.path, alive.model_dump_json().encode(), tag)
            self._note_seconds()

    def check(self) -> None:
        """LeaseError unless this driver still holds the lease."""
        check_lease(self.storage, self.path, self.holder.nonce)

    def seconds(self) -> float:
        """Time worked on this stage by all attempts, in seconds."""
        self._note_seconds()
        paths = [entry.path for entry in self.storage.list(f"{self.folder}/attempts")]
        return sum(float(self.storage.read(path)) for path in paths)

    def _note_seconds(self) -> None:
        path = f"{self.folder}/attempts/{self.holder.token:04d}-{self.holder.nonce}"
        self.storage.write(path, f"{time.monotonic() - self._begin:.3f}".encode())

    def release(self, finished: bool) -> None:
        """Give the lease back: with all work in progress when the artifact is there, else for the next attempt."""
        self._stop.set()
        self._thread.join()
        try:
            self.check()
        except LeaseError:
            return  # it is another's to clean up
        if finished:
            self.storage.delete_folder(self.folder)
        else:
            with suppress(StorageError):  # a full disk
                self._note_seconds()
            self.storage.delete(self.path)


def await_free(storage: Storage, stage: str, fingerprint: str, tell: Callable[[str], None]) -> None:
    """Return once nobody works on the stage; LeaseError, naming the owner, once it is known that somebody does.

    A driver elsewhere that died a moment ago looks like one that works, until its next sign of life is due: where it
    comes, that is the error; where none comes for LEASE_SECONDS, the stage is free. `tell` is given one line where this
    takes time.
    """
    first: Holder | None = None
    while (theirs := _holder(storage, stage, fingerprint)) is not None and not theirs.is_dead():
        if theirs.machine == _machine():
            raise _taken(stage, theirs)
        if first is None:
            first = theirs
            tell(f"{stage}: {theirs.owner} has it; waiting up to {LEASE_SECONDS:.0f} s to see whether it lives")
        elif (theirs.nonce, theirs.heartbeat) != (first.nonce, first.heartbeat):
            raise _taken(stage, theirs)
        time.sleep(_LOOK_SECONDS)


def _holder(storage: Storage, stage: str, fingerprint: str) -> Holder | None:
    try:
        return Holder.model_validate_json(storage.read(f"{work_path(stage, fingerprint)}/lease.json"))
    except FileNotFoundError:
        return None


def check_free(storage: Storage, stage: str, fingerprint: str) -> None:
    """LeaseError, naming the owner, while a living driver works on the stage. Takes nothing."""
    theirs = _holder(storage, stage, fingerprint)
    if theirs is not None and not theirs.is_dead():
        raise _taken(stage, theirs)


def check_idle(storage: Storage) -> None:
    """LeaseError, naming the owner, while a living driver works on anything at this root."""
    for stage in storage.folders(".work"):
        for fingerprint in storage.folders(f".work/{stage}"):
            check_free(storage, stage, fingerprint)


def _taken(stage: str, holder: Holder) -> LeaseError:
    return LeaseError(
        f"{stage} is being made by {holder.owner}",
        f"Wait for it, or end it; its lease is free {LEASE_SECONDS:.0f} s after its last sign of life.",
    )


def is_held(lease: bytes, nonce: str) -> bool:
    return Holder.model_validate_json(lease).nonce == nonce


def check_lease(storage: Storage, path: str, nonce: str) -> None:
    """Fencing: LeaseError unless the lease at `path` is still that of `nonce`."""
    try:
        text = storage.read(path)
    except FileNotFoundError:
        raise LeaseError(f"the lease {storage.uri(path)} is gone", "Another driver has finished this stage.") from None
    if not is_held(text, nonce):
        owner = Holder.model_validate_json(text).owner
        raise LeaseError(f"the lease {storage.uri(path)} went to {owner}", "This writer may not commit.")
