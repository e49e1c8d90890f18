"""The interface of a storage, and one-line messages for errors of the operating system. No implementation here.

Files are written as a whole: readers never see partial content.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from pipeline.errors import StorageError

Block = bytes | memoryview
"""Consecutive bytes of a file."""


class Entry(NamedTuple):
    """A file below a root: its path relative to it (with forward slashes), its size, and a tag of its content.

    The tag is another one whenever the content may be: S3's ETag without quotes, the times of a local file.
    """

    path: str
    bytes: int
    tag: str


class Storage(Protocol):
    """Files below one root. Paths are relative, with forward slashes; `""` is the root itself.

    Every method raises StorageError, or FileNotFoundError if a path that must exist is missing.
    """

    root: str  # the URI, without a trailing slash

    def read(self, path: str) -> bytes: ...
    def read_start(self, path: str, size: int) -> bytes:
        """The first `size` bytes, or all of a smaller file. No more than these are transferred."""

    def write(self, path: str, data: bytes) -> None:
        """Create or replace the file atomically: a reader sees the old or the new content."""

    def write_stream(self, path: str, blocks: Iterable[Block]) -> None:
        """As `write`, with the content as consecutive blocks. They are iterated once; a few of them are in use at a
        time, 80 MiB at most if none is larger than 16 MiB. An object on S3 has at most 160 GB.
        """

    def write_new(self, path: str, data: bytes) -> bool:
        """Create the file if it does not exist. False if it exists."""

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """The content and a tag of this version of it, for `replace`."""

    def replace(self, path: str, data: bytes, tag: str) -> bool:
        """Replace the file if its tag is still `tag`. False if it has changed or was deleted."""

    def exists(self, path: str) -> bool: ...
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every file below the folder `prefix`, sorted by path."""

    def tag_is_md5(self, path: str) -> bool:
        """Whether the tag of this existing file is the MD5 of its content, if it looks like one."""

    def folders(self, prefix: str = "") -> Sequence[str]:
        """The names of the folders directly below `prefix`, sorted."""

    def open(self, path: str, start: int = 0) -> BinaryIO:
        """A stream for reading from byte `start` on. Only the stream of a local file can be sought in."""

    def open_ranges(self, path: str) -> BinaryIO:
        """The file to seek and read in; of a remote one only what is read is transferred."""

    def download(self, path: str, target: Path) -> None: ...
    def upload(self, source: Path, path: str) -> None: ...
    def delete(self, path: str) -> None:
        """Delete one file; no error if it does not exist."""

    def delete_folder(self, prefix: str) -> None:
        """Delete every file below `prefix`; no error if there is none."""

    def uri(self, path: str = "") -> str: ...
    def local_path(self, path: str = "") -> Path | None:
        """The path of the file or folder on a local disk; None for remote storage."""

    @property
    def endpoint(self) -> str | None:
        """The URL of the server; None for a local folder."""

    @property
    def authority(self) -> str | None:
        """File or folder of the server's certificate authority; None: the system's."""


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn OSErrors into StorageErrors about `where`. FileNotFoundError stays as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, where) from error


def storage_error(error: OSError, where: str = "") -> StorageError:
    """A StorageError for an OSError: place, problem and hint."""
    where = where or str(error.filename or "this machine")
    return StorageError(f"{where}: {error.strerror or error}", _HINTS.get(error.errno or 0, ""))


_HINTS = {
    errno.ENOSPC: "Free some disk space (see `python -m pipeline artifact gc`), then run again.",
    errno.EDQUOT: "Free some space of the disk quota, then run again.",
    errno.EACCES: "Give this user permission, or choose another path (--root, data.uri).",
    errno.EPERM: "Give this user permission, or choose another path (--root, data.uri).",
    errno.EROFS: "Choose a path on a writable file system with --root.",
    errno.ENOTDIR: "Choose another path: a part of this one is a file.",
    errno.EIO: "Check the disk, then run again.",
}
