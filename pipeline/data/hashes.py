"""The MD5s of a local source's files: taken once, by a few threads, and remembered at the root by path, size and times.

What they are for is in `revision.py`. A file's identity is a digest of its path, its size and its times; the memory has
32 bytes a file: the identity, then the MD5.
"""

import hashlib
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress

from pipeline.errors import DataError, StorageError
from pipeline.storage import Entry, Storage, local_entry

_HALF, _WHOLE = 16, 32  # bytes of an identity or an MD5, and of both
_BUCKETS = 4096
_MAGIC = b"denoising-vae md5 1\n"
_THREADS = 8  # they read ahead of each other on a file server; an MD5 is taken outside of Python's lock
_BLOCK = 1024**2
_TRIES = 3  # for a file that changes while it is read
_POLL_SECONDS = 0.2
_OTHERS = 2_000_000  # most files that are remembered though they are not listed: 64 MB
_SAVE_SECONDS = 60.0  # what is lost if this machine dies
_SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system (FAT): a younger file can change and keep its time


class Remembered:
    """MD5s by identity. Compact, because a source may have millions of files: a bucket is one string of records."""

    def __init__(self, records: bytes = b"") -> None:
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._count = 0
        for start in range(0, len(records), _WHOLE):
            self.add(records[start : start + _HALF], records[start + _HALF : start + _WHOLE])

    def __len__(self) -> int:
        return self._count

    def _bucket(self, identity: bytes) -> bytearray:
        return self._buckets[int.from_bytes(identity[:2], "little") % _BUCKETS]

    def add(self, identity: bytes, md5: bytes) -> None:
        self._bucket(identity).extend(identity + md5)
        self._count += 1

    def find(self, identity: bytes) -> bytes | None:
        bucket = self._bucket(identity)
        at = bucket.find(identity)
        while at % _WHOLE and at >= 0:  # found within a record
            at = bucket.find(identity, at + 1)
        return bytes(bucket[at + _HALF : at + _WHOLE]) if at >= 0 else None

    def records(self) -> bytes:
        return b"".join(self._buckets)

    def without(self, other: "Remembered") -> bytes:
        """The records whose identities are not in `other`."""
        records = (bucket[at : at + _WHOLE] for bucket in self._buckets for at in range(0, len(bucket), _WHOLE))
        return b"".join(record for record in records if other.find(bytes(record[:_HALF])) is None)


def identity_of(entry: Entry) -> bytes:
    """16 bytes over path, size and times."""
    text = f"{entry.path}\0{entry.bytes}\0{entry.tag}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=_HALF).digest()


class LocalSums:
    """The MD5s of some files below one local folder. Those that are remembered are there at once; `take` has the rest.

    They are remembered in a file at the root, beside the indexes, since a root outlives the machines and pods that work
    on it. There is one file a folder, so that another validation set costs no second reading of the training set. What
    is not listed is remembered too, unless it is very much: a glob lists a part of the same folder.
    """

    def __init__(
        self, folder: Storage, entries: Sequence[Entry], root: Storage, say: Callable[[str], None] | None = None
    ) -> None:
        """Reads the memory; a damaged one is said, and counts as none."""
        self._folder, self._entries, self._root = folder, entries, root
        self._path = f".index/{hashlib.sha256(folder.root.encode()).hexdigest()}.md5"
        self._known, self._kept = self._remembered(say or (lambda _: None)), Remembered()
        self._md5s, self._missing = bytearray(_HALF * len(entries)), array("Q")
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._read = self._added = 0
        for index, entry in enumerate(entries):
            identity = identity_of(entry)
            md5 = self._known.find(identity)
            if md5 is None:
                self._missing.append(index)
            else:
                self._set(index, md5)
                self._kept.add(identity, md5)
        self.missing_bytes = sum(entries[index].bytes for index in self._missing)

    def __iter__(self) -> Iterator[str]:
        """The MD5s in hex, in the order of the entries; after `take`."""
        return (self._md5s[at : at + _HALF].hex() for at in range(0, len(self._md5s), _HALF))

    def _set(self, index: int, md5: bytes) -> None:
        self._md5s[_HALF * index : _HALF * (index + 1)] = md5

    def take(self, progress: Callable[[int], None]) -> None:
        """Read the files that are not remembered; `progress` receives the bytes read so far.

        What was read is remembered every minute, and when this is interrupted. DataError if a file is gone, or changes
        all the time.
        """
        if not self._missing:
            return
        try:
            self._run_threads(progress)
        except BaseException:
            with suppress(StorageError):  # on a full disk, report the first error
                self._save(self._records())
            raise
        if self._added:
            self._save(self._records())

    def _run_threads(self, progress: Callable[[int], None]) -> None:
        queue, saved = iter(self._missing), time.monotonic()
        with ThreadPoolExecutor(_THREADS, "md5") as pool:
            try:
                pending = {pool.submit(self._work, queue) for _ in range(min(_THREADS, len(self._missing)))}
                while pending:
                    done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                    for thread in done:
                        thread.result()
                    progress(min(self._read, self.missing_bytes))
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        with self._lock:
                            records = self._records()
                        self._save(records)
                        saved = time.monotonic()
            finally:
                self._stop.set()

    def _work(self, queue: Iterator[int]) -> None:
        """A thread: reads one file after the other, until none is left."""
        buffer = memoryview(bytearray(_BLOCK))
        while True:
            with self._lock:
                index = next(queue, None)
            if index is None:
                return
            entry = self._entries[index]
            md5, lasts = self._md5(entry, buffer)
            if md5 is None:
                return
            with self._lock:
                self._set(index, md5)
                if lasts:
                    self._kept.add(identity_of(entry), md5)
                    self._added += 1

    def _md5(self, entry: Entry, buffer: memoryview) -> tuple[bytes | None, bool]:
        """The file's MD5, and whether it may be remembered under this entry; (None, False) after a stop."""
        for _ in range(_TRIES):
            began = time.time_ns()
            try:
                file = self._folder.open(entry.path)
            except FileNotFoundError as error:
                where = self._folder.uri(entry.path)
                raise DataError(f"{where}: the file was removed since the source was listed", "Run again.") from error
            with file:
                before, md5 = os.fstat(file.fileno()), hashlib.md5(usedforsecurity=False)
                while count := file.readinto(buffer):  # type: ignore[attr-defined]
                    md5.update(buffer[:count])
                    with self._lock:
                        self._read += count
                    if self._stop.is_set():
                        return None, False
                after = os.fstat(file.fileno())
            read = local_entry(entry.path, after)
            if read == local_entry(entry.path, before):
                changed = max(after.st_mtime_ns, after.st_ctime_ns)
                return md5.digest(), read == entry and abs(began - changed) > _SETTLED_NS
        raise DataError(
            f"{self._folder.uri(entry.path)} changes while it is read", "Run again when nothing writes to the source."
        )

    def _remembered(self, say: Callable[[str], None]) -> Remembered:
        try:
            content = self._root.read(self._path)
        except FileNotFoundError:
            return Remembered()
        records, checksum = content[len(_MAGIC) : -_WHOLE], content[-_WHOLE:]
        if content.startswith(_MAGIC) and len(records) % _WHOLE == 0 and hashlib.sha256(records).digest() == checksum:
            return Remembered(records)
        say(f"{self._root.uri(self._path)} is damaged: the files of {self._folder.root} are read again")
        return Remembered()

    def _records(self) -> bytes:
        others = self._known.without(self._kept)
        return self._kept.records() + (others if len(others) <= _WHOLE * _OTHERS else b"")

    def _save(self, records: bytes) -> None:
        self._root.write(self._path, _MAGIC + records + hashlib.sha256(records).digest())
