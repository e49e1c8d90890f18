"""The lease that lets one driver at a time work on a stage, with a heartbeat and a fencing token."""

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
LEASE_SECONDS = 60.0  # without a heartbeat for this long, the owner is considered dead
_POLL_SECONDS = 1.0
_PATIENT_SECONDS = 5.0  # a training that is waited for takes long, and S3 counts the questions


class Holder(BaseModel):
    """The content of a lease file: the driver that holds it."""

    owner: str  # for messages: user, host and process
    machine: str  # a dead owner on the same machine is detected at once
    pid: int
    started: float  # start time of the process, since process ids are reused
    nonce: str
    token: int  # fencing token: increases with every change of owner
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
    """Host, boot time and, on Linux, PID namespace: containers on one host have their own."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()}/{psutil.boot_time():.0f}" + (
        f"/{namespace.readlink()}" if namespace.is_symlink() else ""
    )


class Lease:
    """The lease on one stage of one fingerprint: a file with owner, heartbeat and fencing token.

    Acquired and renewed by conditional writes. It also records the seconds of this attempt, in a file next to it.
    """

    def __init__(self, storage: Storage, stage: str, fingerprint: str) -> None:
        self.storage, self.stage = storage, stage
        self.folder = work_path(stage, fingerprint)
        self.path = f"{self.folder}/lease.json"
        self.holder = self._acquire()
        self._begin = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat_loop, name=f"lease-{stage}", daemon=True)
        self._thread.start()

    def _acquire(self) -> Holder:
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
            raise _lease_held(self.stage, theirs)
        mine = mine.model_copy(update={"token": theirs.token + 1})
        if not self.storage.replace(self.path, mine.model_dump_json().encode(), tag):
            raise self._lost_race()
        return mine

    def _lost_race(self) -> LeaseError:
        return LeaseError(
            f"another driver acquired the lease on {self.stage} at the same time", "Run again to see which."
        )

    def _heartbeat_loop(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(StorageError, FileNotFoundError):  # a lease survives missed heartbeats; `check` decides
                self.renew()

    def renew(self) -> None:
        """Write a heartbeat, unless another driver has taken the lease over."""
        text, tag = self.storage.read_tagged(self.path)
        if is_held(text, self.holder.nonce):
            alive = self.holder.model_copy(update={"heartbeat": time.time()})
            self.storage.replace(self.path, alive.model_dump_json().encode(), tag)
            self._record_seconds()

    def check(self) -> None:
        """LeaseError unless this driver still holds the lease."""
        check_lease(self.storage, self.path, self.holder.nonce)

    def seconds(self) -> float:
        """Time spent on this stage by all attempts, in seconds."""
        self._record_seconds()
        paths = [entry.path for entry in self.storage.list(f"{self.folder}/attempts")]
        return sum(float(self.storage.read(path)) for path in paths)

    def _record_seconds(self) -> None:
        path = f"{self.folder}/attempts/{self.holder.token:04d}-{self.holder.nonce}"
        self.storage.write(path, f"{time.monotonic() - self._begin:.3f}".encode())

    def release(self, finished: bool) -> None:
        """Release the lease. If `finished`, delete the work folder of the stage; else keep it for the next attempt."""
        self._stop.set()
        self._thread.join()
        try:
            self.check()
        except LeaseError:
            return  # the new owner cleans up
        if finished:
            self.storage.delete_folder(self.folder)
        else:
            with suppress(StorageError):  # a full disk
                self._record_seconds()
            self.storage.delete(self.path)


def await_free(
    storage: Storage, stage: str, fingerprint: str, say: Callable[[str], None], patient: bool = False
) -> None:
    """Return when no living driver holds the stage's lease. LeaseError, naming the owner, if one does.

    `patient`: wait until it has given the lease back, or died, however long that takes. Otherwise one on another
    machine may have died recently. So this waits up to LEASE_SECONDS for its next heartbeat: if one arrives,
    LeaseError; if none does, the lease has expired. `say` receives one line before the wait for an owner.
    """
    first: Holder | None = None
    while (theirs := _holder(storage, stage, fingerprint)) is not None and not theirs.is_dead():
        if patient:
            if first is None or theirs.nonce != first.nonce:
                say(f"{stage}: waiting for {theirs.owner}, who holds its lease")
            first = theirs
        elif theirs.machine == _machine():
            raise _lease_held(stage, theirs)
        elif first is None:
            first = theirs
            say(f"{stage}: {theirs.owner} holds its lease; waiting up to {LEASE_SECONDS:.0f} s for the next heartbeat")
        elif (theirs.nonce, theirs.heartbeat) != (first.nonce, first.heartbeat):
            raise _lease_held(stage, theirs)
        time.sleep(_PATIENT_SECONDS if patient else _POLL_SECONDS)


def _holder(storage: Storage, stage: str, fingerprint: str) -> Holder | None:
    try:
        return Holder.model_validate_json(storage.read(f"{work_path(stage, fingerprint)}/lease.json"))
    except FileNotFoundError:
        return None


def check_free(storage: Storage, stage: str, fingerprint: str) -> None:
    """LeaseError, naming the owner, if a living driver holds the stage's lease. Does not acquire it."""
    theirs = _holder(storage, stage, fingerprint)
    if theirs is not None and not theirs.is_dead():
        raise _lease_held(stage, theirs)


def check_idle(storage: Storage) -> None:
    """LeaseError, naming the owner, if a living driver holds any lease at this root."""
    for stage in storage.folders(".work"):
        for fingerprint in storage.folders(f".work/{stage}"):
            check_free(storage, stage, fingerprint)


def _lease_held(stage: str, holder: Holder) -> LeaseError:
    return LeaseError(
        f"{stage} is already running: {holder.owner} holds its lease",
        f"Wait for it, or stop it; its lease expires {LEASE_SECONDS:.0f} s after its last heartbeat.",
    )


def is_held(lease: bytes, nonce: str) -> bool:
    return Holder.model_validate_json(lease).nonce == nonce


def check_lease(storage: Storage, path: str, nonce: str) -> None:
    """Fencing: LeaseError unless the lease at `path` is still held with `nonce`."""
    try:
        text = storage.read(path)
    except FileNotFoundError:
        raise LeaseError(
            f"the lease {storage.uri(path)} was deleted",
            "Run again to use the result of the driver that finished the stage.",
        ) from None
    if not is_held(text, nonce):
        owner = Holder.model_validate_json(text).owner
        raise LeaseError(
            f"the lease {storage.uri(path)} was taken over by {owner}", "Wait for that driver: this one may not commit."
        )
