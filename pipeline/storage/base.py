"""What every storage can do, and what the operating system refuses as one line. No file system is here.

Whole files in, whole files out: nothing is ever seen half-written.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from pipeline.errors import StorageError


class Entry(NamedTuple):
    """A file below a root: its path relative to it (with forward slashes) and its size."""

    path: str
    bytes: int


class Storage(Protocol):
    """Files below one root. Paths are relative, with forward slashes; `""` is the root itself.

    Every method raises StorageError (or FileNotFoundError where a path that must exist does not).
    """

    root: str  # the URI, without a trailing slash

    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None:
        """Replace the whole file; a reader sees the old or the new one."""

    def write_new(self, path: str, data: bytes) -> bool:
        """Create the file if it is absent. False when somebody else had it first."""

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """The content and a tag that changes with it, for `replace`."""

    def replace(self, path: str, data: bytes, tag: str) -> bool:
        """Replace the file if it still carries `tag`. False when it has changed or gone."""

    def exists(self, path: str) -> bool: ...
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every file below the folder `prefix`, sorted by path."""

    def folders(self, prefix: str = "") -> Sequence[str]:
        """The names of the folders directly below `prefix`, sorted."""

    def open(self, path: str) -> BinaryIO:
        """A stream for reading."""

    def download(self, path: str, target: Path) -> None: ...
    def upload(self, source: Path, path: str) -> None: ...
    def delete(self, path: str) -> None:
        """Remove one file; absent is fine."""

    def delete_folder(self, prefix: str) -> None:
        """Remove every file below `prefix`; absent is fine."""

    def uri(self, path: str = "") -> str: ...
    def local_path(self, path: str = "") -> Path | None:
        """The file or folder on this machine's own disk; None where it lies elsewhere."""

    def arrow(self, path: str = "", lasting: bool = False) -> tuple[Any, str]:
        """Arrow's file system, and the path in it. `lasting`: it is to outlive credentials that end."""

    @property
    def endpoint(self) -> str | None:
        """The URL of the server that keeps the files; None where there is none."""

    @property
    def authority(self) -> str | None:
        """The file or folder of the certificate authority that the server is known by; None: the usual ones."""


@contextmanager
def refused_at(where: str) -> Iterator[None]:
    """Turn what the operating system refuses into one line. A missing file stays FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refusal(error, where) from error


def refusal(error: OSError, where: str = "") -> StorageError:
    """What the operating system refused, as one line: where, what, what to do."""
    where = where or str(error.filename or "this machine")
    return StorageError(f"{where}: {error.strerror or error}", _HINTS.get(error.errno or 0, ""))


_HINTS = {
    errno.ENOSPC: "The disk is full: free some space (see `python -m pipeline artifact gc`), then run again.",
    errno.EDQUOT: "The disk quota is used up: free some space, then run again.",
    errno.EACCES: "Give this user permission to it, or choose another place (--root, data.uri).",
    errno.EPERM: "Give this user permission to it, or choose another place (--root, data.uri).",
    errno.EROFS: "That file system is read-only: choose another place with --root.",
    errno.ENOTDIR: "A part of that path is a file: choose another place.",
    errno.EIO: "The disk reports an error: check it, then run again.",
}
