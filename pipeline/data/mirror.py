"""The mirror: shards as uncompressed Arrow files on a node's own disk, made once and shared by its workers.

One file a shard, named by its content, so that a cut mirroring goes on where it was and another run finds them again.
What lies in the files is `store.py`'s affair.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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


class StoredShard(NamedTuple):
    """A shard to be mirrored: where it lies in the storage, and what must be in it."""

    path: str
    rows: int
    bytes: int
    sha256: str


def mirror_directory(configured: str | None) -> Path:
    """`cluster.mirror`, or else a folder below the user's cache."""
    return Path(configured) if configured is not None else cache_folder() / "mirror"


class Mirror:
    """The rows of some shards, in order, as local Arrow files.

    `keep` None: every file is made at once by `fetch`, and stays. Else a file is made when it is first opened, and who
    opens them drops the one longest unused when there are more than `keep`.
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
        """Make every file that is not there, one shard at a time; `progress` is told the rows done so far.

        StorageError when the disk is too small, ContractError when a shard is not what it should be. Waits while
        another worker of this node is at it.
        """
        missing = [i for i in range(len(self.shards)) if not self._is_whole(i)]
        if missing:
            with _locked(self.directory):
                missing = [i for i in missing if not self._is_whole(i)]
                _remove_partial(self.directory)
                done = self.rows - sum(self.shards[i].rows for i in missing)
                growth = 1.0  # uncompressed over stored bytes: known from the first shard on
                for n, i in enumerate(missing):
                    progress(done)
                    self._check_room(growth * sum(self.shards[j].bytes for j in missing[n:]))
                    growth = self._make(i) / self.shards[i].bytes
                    done += self.shards[i].rows
        progress(self.rows)

    def open(self, i: int) -> list[pa.RecordBatch]:
        """The record batches of shard i, mapped from the local file, not read. Errors as `fetch`."""
        if self.keep is None:
            return _mapped(self._path(i))
        with _locked(self.directory):  # else another worker may drop the file between the look and the opening
            if not self._is_whole(i):
                self._check_room(self.shards[i].bytes)
                self._make(i)
            return _mapped(self._path(i))

    def drop(self, i: int) -> None:
        """Remove the file of shard i. Who has it mapped still reads it; who wants it again makes it again."""
        self._path(i).unlink(missing_ok=True)

    def _path(self, i: int) -> Path:
        content = "\0".join((_VERSION, self.shards[i].sha256, *self.columns))
        return self.directory / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.arrow"

    def _is_whole(self, i: int) -> bool:
        """Is the file there, complete (an Arrow file ends with its directory), and of as many rows as it should?"""
        try:
            with _said(self.directory):
                rows = sum(batch.num_rows for batch in _mapped(self._path(i)))
        except (FileNotFoundError, pa.ArrowInvalid):
            return False
        return bool(rows == self.shards[i].rows)

    def _make(self, i: int) -> int:
        """Make the file of shard i. Its size in bytes."""
        partial = self.directory / f"{_PARTIAL}{self._path(i).name}"
        with _said(self.directory), _on_disk(self.storage, self.shards[i], self.directory) as source:
            _convert(source, partial, self.columns)
            size = partial.stat().st_size
            os.replace(partial, self._path(i))
        return size

    def _check_room(self, missing: float) -> None:
        """StorageError when the disk has no room for `missing` bytes and a shard that is just being fetched."""
        needed = int(missing) + max(shard.bytes for shard in self.shards)
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise StorageError(
                f"{self.directory}: the mirror needs about {needed} bytes more, the disk has {free} free",
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
    """The mirror that `data.shuffle` asks for: of everything, or of the shards that a window's rows come from.

    `group_rows` is the one that goes into `order.batch_indices`. Errors as `Mirror.fetch`; `progress` is not told of
    anything under window, where a shard is fetched when it is needed.
    """
    if data.shuffle == "window":
        return Mirror(storage, shards, directory, columns, _window_shards(shards, data.window_rows, group_rows))
    mirror = Mirror(storage, shards, directory, columns, None)
    mirror.fetch(progress or (lambda _: None))
    return mirror


def _window_shards(shards: Sequence[StoredShard], window_rows: int, group_rows: int) -> int:
    """The most shards that one window's rows lie in, shards being about equal: a cut at either end of each group."""
    mean = max(1, sum(shard.rows for shard in shards) // max(1, len(shards)))
    return -(-window_rows // mean) + 2 * (window_rows // group_rows + 2)


def _mapped(path: Path) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(n) for n in range(reader.num_record_batches)]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process of this node at a time."""
    path = directory / ".lock"
    with _said(directory):
        directory.mkdir(parents=True, exist_ok=True)
        path.touch()
    with open(path) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_partial(directory: Path) -> None:
    """What a killed process left; none is at work while we hold the lock."""
    for path in directory.glob(f"{_PARTIAL}*"):
        path.unlink()


@contextmanager
def _on_disk(storage: Storage, shard: StoredShard, directory: Path) -> Iterator[Path]:
    """The shard as a local file that hashes to what it should; a remote one is there for a moment only."""
    local = storage.local_path(shard.path)
    try:
        if local is not None:
            path = local
        else:
            path = directory / f"{_PARTIAL}{secrets.token_hex(6)}.parquet"
            storage.download(shard.path, path)
        whole = hash_file(path).sha256 == shard.sha256
    except FileNotFoundError:
        whole = False
    if not whole:
        raise ContractError(
            f"{storage.uri(shard.path)} is missing or not what its manifest says",
            f"Make it anew: `python -m pipeline artifact repair {'/'.join(shard.path.split('/')[:2])}`.",
        )
    yield path
    if local is None:
        path.unlink()


def _convert(source: Path, target: Path, columns: Sequence[str]) -> None:
    """Parquet to an uncompressed Arrow file, one row group in memory at a time, flushed to the disk."""
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
def _said(directory: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line. A missing file stays FileNotFoundError."""
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
