"""What a stage leaves behind, and how it comes to be: manifest, commit, verification; the lease on its work.

An artifact is a folder `STAGE/FINGERPRINT` whose manifest is written last, if absent: it exists when the manifest does.
"""

import hashlib
import os
import platform
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ContractError, LeaseError, StorageError
from pipeline.storage import LocalStorage, Storage

SHORT = 12  # hex digits of a fingerprint in the names of folders, jobs and labels
HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0  # after so long without a heartbeat the owner is taken for dead
_LOOK_SECONDS = 1.0


class FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact holds and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    fingerprint: str
    inputs: dict[str, str]  # stage -> fingerprint
    input_contents: dict[str, str]  # stage -> content of the artifact that was read
    config: dict[str, Any]  # the fields that count, by dotted name
    files: dict[str, FileRecord]
    rows: int
    metrics: dict[str, float]
    details: dict[str, Any]  # what the consumers of this stage need to know beyond the files
    seconds: float  # over all attempts
    git_sha: str | None
    image_digest: str | None
    created: str

    @property
    def content(self) -> str:
        """One digest over all files."""
        lines = "".join(f"{record.sha256} {path}\n" for path, record in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def artifact_path(stage: str, fingerprint: str) -> str:
    return f"{stage}/{fingerprint[:SHORT]}"


def work_path(stage: str, fingerprint: str) -> str:
    return f".work/{stage}/{fingerprint[:SHORT]}"


def read_manifest(storage: Storage, stage: str, fingerprint: str) -> Manifest | None:
    """The manifest, or None when nothing is committed. ContractError when it is somebody else's or not readable."""
    path = f"{artifact_path(stage, fingerprint)}/manifest.json"
    try:
        text = storage.read(path)
    except FileNotFoundError:
        return None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValueError as error:
        raise ContractError(f"{storage.uri(path)} is not a manifest", "Delete that folder and run again.") from error
    if manifest.fingerprint != fingerprint:
        raise ContractError(f"{storage.uri(path)} is of another fingerprint", "Delete that folder and run again.")
    return manifest


def all_manifests(storage: Storage) -> list[Manifest]:
    """Every committed artifact at this root, by stage and age. ContractError for a manifest that is none."""
    found = []
    for stage in storage.folders():
        if stage.startswith("."):
            continue
        for name in storage.folders(stage):
            path = f"{stage}/{name}/manifest.json"
            try:
                found.append(Manifest.model_validate_json(storage.read(path)))
            except FileNotFoundError:
                continue  # not committed yet
            except ValidationError as error:
                raise ContractError(f"{storage.uri(path)} is not a manifest", "Take that folder away.") from error
    return sorted(found, key=lambda manifest: (manifest.stage, manifest.created))


def hash_file(path: Path) -> FileRecord:
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256")
    return FileRecord(bytes=path.stat().st_size, sha256=digest.hexdigest())


def hash_stored(storage: Storage, path: str) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with storage.open(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def broken_files(storage: Storage, manifest: Manifest) -> list[str]:
    """The files that are missing or do not hash to what the manifest says. Reads everything."""
    folder = artifact_path(manifest.stage, manifest.fingerprint)
    broken = []
    for path, record in sorted(manifest.files.items()):
        try:
            if hash_stored(storage, f"{folder}/{path}") != record:
                broken.append(path)
        except FileNotFoundError:
            broken.append(path)
    return broken


def remove_artifact(storage: Storage, stage: str, fingerprint: str) -> None:
    """Take an artifact away, the manifest first, so that nobody takes the rest for whole."""
    storage.delete(f"{artifact_path(stage, fingerprint)}/manifest.json")
    storage.delete_folder(artifact_path(stage, fingerprint))


@dataclass(frozen=True)
class Outcome:
    """What a stage's body hands back for the manifest."""

    files: dict[str, FileRecord]
    rows: int
    metrics: dict[str, float]
    details: dict[str, Any]


class ArtifactWriter:
    """Puts files into an artifact's folder before it is committed, and remembers their hashes."""

    def __init__(self, storage: Storage, stage: str, fingerprint: str) -> None:
        self.storage = storage
        self.folder = artifact_path(stage, fingerprint)
        self.files: dict[str, FileRecord] = {}

    def add(self, source: Path, name: str) -> None:
        self.files[name] = hash_file(source)
        self.storage.upload(source, f"{self.folder}/{name}")

    def add_bytes(self, data: bytes, name: str) -> None:
        self.files[name] = FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        self.storage.write(f"{self.folder}/{name}", data)

    def add_stored(self, name: str, record: FileRecord) -> None:
        """A file that a worker has already put there."""
        self.files[name] = record

    def outcome(self, rows: int, metrics: dict[str, float] | None = None, **details: Any) -> Outcome:
        return Outcome(dict(self.files), rows, metrics or {}, details)


def commit(storage: Storage, manifest: Manifest, lease: "Lease") -> None:
    """Make the artifact exist. LeaseError when another driver has taken the stage over meanwhile."""
    folder = artifact_path(manifest.stage, manifest.fingerprint)
    kept = {f"{folder}/{path}" for path in ("manifest.json", *manifest.files)}
    lease.check()
    for entry in list(storage.list(folder)):
        if entry.path not in kept:
            storage.delete(entry.path)  # left by an attempt that was cut
    if not storage.write_new(f"{folder}/manifest.json", manifest.model_dump_json(indent=1).encode()):
        raise LeaseError(f"{storage.uri(folder)} was committed by somebody else meanwhile", "Run again to use it.")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def git_sha() -> str | None:
    """The commit of this checkout, or of the image it was baked into; None outside of both."""
    if "DVAE_GIT_SHA" in os.environ:
        return os.environ["DVAE_GIT_SHA"]
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # installed, perhaps below somebody else's checkout
        return None
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return None
    return asked.stdout.strip() or None


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


def read_checked(storage: Storage, manifest: Manifest, name: str) -> bytes:
    """One file of an artifact. ContractError when it is not what the manifest says."""
    path = f"{artifact_path(manifest.stage, manifest.fingerprint)}/{name}"
    try:
        data = storage.read(path)
    except FileNotFoundError:
        raise _broken(storage, manifest, name) from None
    if hashlib.sha256(data).hexdigest() != manifest.files[name].sha256:
        raise _broken(storage, manifest, name)
    return data


def _broken(storage: Storage, manifest: Manifest, name: str) -> ContractError:
    artifact = f"{manifest.stage}/{manifest.fingerprint[:SHORT]}"
    return ContractError(
        f"{storage.uri(artifact)}/{name} is not what its manifest says",
        f"Run `python -m pipeline artifact repair {artifact} --root {storage.root}`.",
    )


def local_copies(storage: Storage, manifest: Manifest, names: Iterable[str], target: Path) -> dict[str, Path]:
    """Local paths of an artifact's files, copied to `target` where the storage is remote; hashes are checked.

    ContractError when a file is not what the manifest says.
    """
    folder = artifact_path(manifest.stage, manifest.fingerprint)
    paths = {}
    for name in names:
        record = manifest.files[name]
        if isinstance(storage, LocalStorage):
            path = storage.local(f"{folder}/{name}")
        else:
            path = target / record.sha256[:SHORT] / Path(name).name
            if not path.exists():
                partial = path.with_name(f"{path.name}.{os.getpid()}")
                storage.download(f"{folder}/{name}", partial)
                partial.replace(path)
        if not path.exists() or hash_file(path) != record:
            raise _broken(storage, manifest, name)
        paths[name] = path
    return paths
