"""The mirror: shards converted to uncompressed Arrow files on a node's local disk, shared by its workers.

There is one file per shard, named by its content hash, so that an interrupted conversion resumes and later runs reuse
the files. `store.py` reads their rows.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import hash_file
from pipeline.config import DataConfig
from pipeline.errors import ContractError, StorageError
from pipeline.storage import Storage, cache_folder

_VERSION = "1"  # raised when the files' layout changes
_PARTIAL = ".partial-"
_LOCK_SECONDS = 0.5  # between two tries to get the mirror's lock


class StoredShard(NamedTuple):
    """A shard to mirror: its path in the storage, and its expected rows, size and hash."""

    path: str
    rows: int
    bytes: int
    sha256: str


def mirror_directory(configured: str | None) -> Path:
    """`cluster.mirror`, else a folder in the user's cache."""
    return Path(configured) if configured is not None else cache_folder() / "mirror"


class Mirror:
    """The rows of some shards, in order, as local Arrow files.

    If `keep` is None, `fetch` creates all files and they are kept. Otherwise a file is created by `open`, and callers
    drop the least recently used one if there are more than `keep`.
    """

    def __init__(
        self, storage: Storage, shards: Sequence[StoredShard], directory: Path, columns: Sequence[str], keep: int | None
    ) -> None:
        self.storage, self.shards, self.directory, self.columns, self.keep = storage, shards, directory, columns, keep
        self.starts: npt.NDArray[np.int64] = np.cumsum([0, *(shard.rows for shard in shards)])

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    def fetch(self, progress: Callable[[int], None]) -> None:
        """Create every missing file, one shard at a time; `progress` receives the rows done so far.

        StorageError if the disk is too small, ContractError if a shard does not match its manifest. While another
        worker of this node does the same, waits and reports what that one has done.
        """
        missing = self._missing(range(len(self.shards)))
        if missing:
            with _locked(self.directory, lambda: progress(self._done(self._missing(missing)))):
                missing = self._missing(missing)
                _remove_partial(self.directory)
                done = self._done(missing)
                growth = 1.0  # ratio of uncompressed to stored bytes, measured from the first shard on
                for n, i in enumerate(missing):
                    progress(done)
                    self._check_room(growth * sum(self.shards[j].bytes for j in missing[n:]))
                    growth = self._create(i) / self.shards[i].bytes
                    done += self.shards[i].rows
        progress(self.rows)

    def open(self, i: int) -> list[pa.RecordBatch]:
        """The record batches of shard i, memory-mapped. Errors as `fetch`."""
        if self.keep is None:
            return _mapped(self._path(i))
        with _locked(self.directory):  # another worker must not drop the file between check and open
            if not self._is_complete(i):
                _remove_partial(self.directory)
                self._check_room(self.shards[i].bytes)
                self._create(i)
            return _mapped(self._path(i))

    def drop(self, i: int) -> None:
        """Delete the file of shard i. Processes that have it mapped can still read it; `open` creates it again."""
        self._path(i).unlink(missing_ok=True)

    def _missing(self, shards: Iterable[int]) -> list[int]:
        return [i for i in shards if not self._is_complete(i)]

    def _done(self, missing: list[int]) -> int:
        """The rows that are mirrored if these shards are missing."""
        return self.rows - sum(self.shards[i].rows for i in missing)

    def _path(self, i: int) -> Path:
        content = "\0".join((_VERSION, self.shards[i].sha256, *self.columns))
        return self.directory / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.arrow"

    def _is_complete(self, i: int) -> bool:
        """Whether the file exists, is complete (an Arrow file ends with a footer) and has the expected rows."""
        try:
            with _mirror_errors(self.directory):
                rows = sum(batch.num_rows for batch in _mapped(self._path(i)))
        except (FileNotFoundError, pa.ArrowInvalid):
            return False
        return bool(rows == self.shards[i].rows)

    def _create(self, i: int) -> int:
        """Create the file of shard i; returns its size in bytes."""
        partial = self.directory / f"{_PARTIAL}{self._path(i).name}"
        with _mirror_errors(self.directory), _on_disk(self.storage, self.shards[i], self.directory) as source:
            _convert(source, partial, self.columns)
            size = partial.stat().st_size
            os.replace(partial, self._path(i))
        return size

    def _check_room(self, missing: float) -> None:
        """StorageError if the disk has no room for `missing` bytes and one downloaded shard."""
        needed = int(missing) + max(shard.bytes for shard in self.shards)
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise StorageError(
                f"{self.directory}: the mirror needs about {needed} more bytes, the disk has {free} free",
                "Set cluster.mirror to a larger disk, remove old files from it, or set data.shuffle=window.",
            )


def open_mirror(
    storage: Storage,
    shards: Sequence[StoredShard],
    directory: Path,
    columns: Sequence[str],
    data: DataConfig,
    group_rows: int,
    progress: Callable[[int], None] | None = None,
) -> Mirror:
    """The mirror for `data.shuffle`: of all shards, or (window) of as many shards as a window's rows come from.

    `group_rows` as in `order.batch_indices`. Errors as `Mirror.fetch`. For window, `progress` is not called, as shards
    are fetched on demand.
    """
    if data.shuffle == "window":
        return Mirror(storage, shards, directory, columns, _window_shards(shards, data.window_rows, group_rows))
    mirror = Mirror(storage, shards, directory, columns, None)
    mirror.fetch(progress or (lambda _: None))
    return mirror


def _window_shards(shards: Sequence[StoredShard], window_rows: int, group_rows: int) -> int:
    """The maximum number of shards with rows of one window, if shards are about equal: each group may cut two."""
    mean = max(1, sum(shard.rows for shard in shards) // max(1, len(shards)))
    return -(-window_rows // mean) + 2 * (window_rows // group_rows + 2)


def _mapped(path: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(n) for n in range(reader.num_record_batches)]


@contextmanager
def _locked(directory: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the mirror's lock: one process of this node at a time. `waiting` is called while another one holds it."""
    path = directory / ".lock"
    with _mirror_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        path.touch()
    with open(path) as lock:
        while waiting is not None and not _acquired(lock):
            waiting()
            time.sleep(_LOCK_SECONDS)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _acquired(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_partial(directory: Path) -> None:
    """Delete files left by a killed process. The caller holds the lock, so none is in use."""
    for path in directory.glob(f"{_PARTIAL}*"):
        path.unlink()


@contextmanager
def _on_disk(storage: Storage, shard: StoredShard, directory: Path) -> Iterator[Path]:
    """A local file with the shard, its hash verified; a downloaded one is deleted at the end of the block."""
    local = storage.local_path(shard.path)
    try:
        if local is not None:
            path = local
        else:
            path = directory / f"{_PARTIAL}{secrets.token_hex(6)}.parquet"
            storage.download(shard.path, path)
        valid = hash_file(path).sha256 == shard.sha256
    except FileNotFoundError:
        valid = False
    if not valid:
        artifact = "/".join(shard.path.split("/")[:2])
        raise ContractError(
            f"{storage.uri(shard.path)} is missing or does not match its manifest",
            f"Run `python -m pipeline artifact repair {artifact} --root {storage.root}`.",
        )
    yield path
    if local is None:
        path.unlink()


def _convert(source: Path, target: Path, columns: Sequence[str]) -> None:
    """Convert Parquet to an uncompressed Arrow file, with one row group in memory at a time, and fsync it."""
    with pq.ParquetFile(source) as file, open(target, "wb") as sink:
        schema = file.schema_arrow
        schema = pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)
        with pa.ipc.new_file(sink, schema) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(columns))
                for batch in table.select(list(columns)).combine_chunks().to_batches():
                    writer.write_batch(batch)
        sink.flush()
        os.fsync(sink.fileno())


@contextmanager
def _mirror_errors(directory: Path) -> Iterator[None]:
    """Turn OSErrors into StorageErrors about the mirror. FileNotFoundError stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"{directory}: the mirror cannot be written: {'disk full' if full else error}",
            "Free some space, or set cluster.mirror to a folder on a larger disk that this user may write to.",
        ) from error
