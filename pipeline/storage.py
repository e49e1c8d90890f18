"""One file system for file:// and s3://: whole files in, whole files out, nothing ever seen half-written.

Local writes go to a temporary name in the same folder and are renamed; S3 objects appear when their upload ends
(`s3.py`). No caching here.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import unquote, urlparse

from pipeline.errors import ConfigError, StorageError

_TEMPORARY = ".tmp-"


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


def open_storage(uri: str) -> Storage:
    """The storage below `uri`: a local path, file:///path or s3://bucket/prefix. Touches nothing yet."""
    if not uri:
        raise ConfigError("an empty URI names no place", "Use a local path, file:///PATH or s3://BUCKET/PREFIX.")
    parsed = urlparse(uri)
    if not parsed.scheme:
        return LocalStorage(Path(uri).expanduser())
    if parsed.scheme == "file":
        if parsed.netloc not in ("", "localhost") or parsed.query or parsed.fragment:
            raise ConfigError(
                f"'{uri}' is not a local path", "Write file:///PATH, three slashes; %23 for # and %3F for ?."
            )
        return LocalStorage(Path(unquote(parsed.path)))
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise ConfigError(f"'{uri}' names no bucket", "Write s3://BUCKET/PREFIX.")
        from pipeline.s3 import S3Storage

        return S3Storage(parsed.netloc, parsed.path.strip("/"))
    raise ConfigError(f"'{uri}' is neither file:// nor s3://", "Use a local path, file:///PATH or s3://BUCKET/PREFIX.")


def cache_folder() -> Path:
    """Where this machine keeps copies of what lies elsewhere: `$XDG_CACHE_HOME` or ~/.cache, in a folder of ours."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "denoising-vae"


def split_uri(uri: str) -> tuple[Storage, str]:
    """The storage of the folder that holds the file `uri`, and the file's name in it."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return open_storage(folder or "."), name


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
    """What the operating system refused, as one line: where, what, how to mend."""
    where = where or str(error.filename or "this machine")
    return StorageError(f"{where}: {error.strerror or error}", _MENDS.get(error.errno or 0, ""))


_MENDS = {
    errno.ENOSPC: "The disk is full: free some space (see `python -m pipeline artifact gc`), then run again.",
    errno.EDQUOT: "The disk quota is used up: free some space, then run again.",
    errno.EACCES: "Give this user permission to it, or choose another place (--root, data.uri).",
    errno.EPERM: "Give this user permission to it, or choose another place (--root, data.uri).",
    errno.EROFS: "That file system is read-only: choose another place with --root.",
    errno.ENOTDIR: "A part of that path is a file: choose another place.",
    errno.EIO: "The disk reports an error: check it, then run again.",
}


class LocalStorage:
    """Files in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100  # resolve() would follow links
        self.root = self.folder.as_uri()

    def local(self, path: str = "") -> Path:
        return self.folder / path

    def uri(self, path: str = "") -> str:
        return self.local(path).as_uri()

    def read(self, path: str) -> bytes:
        with refused_at(str(self.local(path))):
            return self.local(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        with self._temporary(path) as temporary:
            _write_through(temporary, data)
            os.replace(temporary, self.local(path))

    def write_new(self, path: str, data: bytes) -> bool:
        with self._temporary(path) as temporary:
            _write_through(temporary, data)
            try:
                os.link(temporary, self.local(path))
            except FileExistsError:
                return False
            return True

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        data = self.read(path)
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, path: str, data: bytes, tag: str) -> bool:
        target = self.local(path)
        lock = target.with_name(f"{_TEMPORARY}lock-{target.name}")  # unseen by `list`
        try:
            with refused_at(str(lock)), open(lock, "w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if self.read_tagged(path)[1] != tag:
                    return False
                self.write(path, data)
                return True
        except FileNotFoundError:
            return False  # the file, or its folder, is gone

    def exists(self, path: str) -> bool:
        with refused_at(str(self.local(path))):
            return self.local(path).is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # removed meanwhile
                with refused_at(str(error.filename)):  # the sub-folder, not the base
                    raise error

        base = self.local(prefix)
        with refused_at(str(base)):
            if not base.exists():
                return
            if not base.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(base))
            found = []
            for folder, _, names in os.walk(base, onerror=refuse, followlinks=True):
                for name in names:
                    if not name.startswith(_TEMPORARY):
                        file = Path(folder, name)
                        with suppress(FileNotFoundError):  # removed meanwhile
                            found.append(Entry(file.relative_to(self.folder).as_posix(), file.stat().st_size))
        yield from sorted(found)

    def folders(self, prefix: str = "") -> Sequence[str]:
        base = self.local(prefix)
        with refused_at(str(base)):
            return sorted(entry.name for entry in base.iterdir() if entry.is_dir()) if base.exists() else []

    def open(self, path: str) -> BinaryIO:
        with refused_at(str(self.local(path))):
            return open(self.local(path), "rb")

    def download(self, path: str, target: Path) -> None:
        with refused_at(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.local(path), target)

    def upload(self, source: Path, path: str) -> None:
        with self._temporary(path) as temporary:
            shutil.copyfile(source, temporary)
            os.replace(temporary, self.local(path))

    def delete(self, path: str) -> None:
        with refused_at(str(self.local(path))):
            self.local(path).unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        with refused_at(str(self.local(prefix))):
            if self.local(prefix).is_dir():
                shutil.rmtree(self.local(prefix))

    @contextmanager
    def _temporary(self, path: str) -> Iterator[Path]:
        """A name beside `path` to write to; what is left of it is removed."""
        target = self.local(path)
        temporary = target.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}")
        with refused_at(str(target)):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # e.g. below /proc: nothing can be made there
                raise OSError(errno.EACCES, "cannot be created", str(target.parent)) from error
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)


def _write_through(path: Path, data: bytes) -> None:
    """Write and flush to the disk, so that a rename never uncovers an empty file after a power cut."""
    with open(path, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
