"""file://: files in a local folder. Each is written to a temporary file in the same folder and renamed."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pipeline.storage.base import Block, Entry, storage_errors

_Written = TypeVar("_Written")

_TEMPORARY = ".tmp-"
_DELETED_BETWEEN = 3  # times that a folder may be deleted while a file is written to it
_ABSENT = (errno.ENOENT, errno.ELOOP)


class LocalStorage:
    """Files in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100  # resolve() would follow symbolic links
        self.root = self.folder.as_uri()

    endpoint = authority = None  # no server

    def local_path(self, path: str = "") -> Path:
        return self.folder / path

    def uri(self, path: str = "") -> str:
        return self.local_path(path).as_uri()

    def read(self, path: str) -> bytes:
        with storage_errors(str(self.local_path(path))):
            return self.local_path(path).read_bytes()

    def read_start(self, path: str, size: int) -> bytes:
        with storage_errors(str(self.local_path(path))), open(self.local_path(path), "rb") as stream:
            return stream.read(size)

    def write(self, path: str, data: bytes) -> None:
        _in_a_folder(lambda: self.write_stream(path, [data]))

    def write_stream(self, path: str, blocks: Iterable[Block]) -> None:
        with self._temporary(path) as temporary:
            _write_through(temporary, blocks)
            os.replace(temporary, self.local_path(path))

    def write_new(self, path: str, data: bytes) -> bool:
        return _in_a_folder(lambda: self._link_new(path, data))

    def _link_new(self, path: str, data: bytes) -> bool:
        with self._temporary(path) as temporary:
            _write_through(temporary, [data])
            try:
                os.link(temporary, self.local_path(path))
            except FileExistsError:
                return False
            return True

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        data = self.read(path)
        return data, hashlib.sha256(data).hexdigest()

    def replace(self, path: str, data: bytes, tag: str) -> bool:
        target = self.local_path(path)
        lock = target.with_name(f"{_TEMPORARY}lock-{target.name}")  # hidden from `list`
        try:
            with storage_errors(str(lock)), open(lock, "w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if self.read_tagged(path)[1] != tag:
                    return False
                self.write_stream(path, [data])  # not anew in a folder that was deleted
                return True
        except FileNotFoundError:
            return False  # the file or its folder was deleted

    def exists(self, path: str) -> bool:
        with storage_errors(str(self.local_path(path))):
            return self.local_path(path).is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        def on_error(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # deleted in the meantime
                with storage_errors(str(error.filename)):  # the subfolder, not the base
                    raise error

        base = self.local_path(prefix)
        with storage_errors(str(base)):
            if not base.exists():
                return
            if not base.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "is not a folder", str(base))
            found = []
            for folder, folders, names in os.walk(base, onerror=on_error, followlinks=True):
                folders[:] = [name for name in folders if not _leads_up(Path(folder, name))]
                for name in names:
                    if not name.startswith(_TEMPORARY):
                        file = Path(folder, name)
                        with _absent():  # deleted in the meantime, or a link that leads nowhere
                            status = file.stat()
                            if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
                                found.append(local_entry(file.relative_to(self.folder).as_posix(), status))
        yield from sorted(found)

    def tag_is_md5(self, path: str) -> bool:  # noqa: ARG002  # the same for all
        return False

    def folders(self, prefix: str = "") -> Sequence[str]:
        base = self.local_path(prefix)
        with storage_errors(str(base)):
            return sorted(entry.name for entry in base.iterdir() if entry.is_dir()) if base.exists() else []

    def open(self, path: str, start: int = 0) -> BinaryIO:
        with storage_errors(str(self.local_path(path))):
            stream = open(self.local_path(path), "rb")  # noqa: SIM115  # the caller closes it
            stream.seek(start)
            return stream

    def open_ranges(self, path: str) -> BinaryIO:
        return self.open(path)

    def download(self, path: str, target: Path) -> None:
        with storage_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.local_path(path), target)

    def upload(self, source: Path, path: str) -> None:
        with self._temporary(path) as temporary:
            shutil.copyfile(source, temporary)
            os.replace(temporary, self.local_path(path))

    def delete(self, path: str) -> None:
        with storage_errors(str(self.local_path(path))):
            self.local_path(path).unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        with storage_errors(str(self.local_path(prefix))):
            if self.local_path(prefix).is_dir():
                shutil.rmtree(self.local_path(prefix))

    @contextmanager
    def _temporary(self, path: str) -> Iterator[Path]:
        """A temporary path in the folder of `path`; deleted on exit if it still exists."""
        target = self.local_path(path)
        temporary = target.with_name(f"{_TEMPORARY}{secrets.token_hex(6)}")
        with storage_errors(str(target)):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # e.g. below /proc, where no folder can be created
                raise OSError(errno.EACCES, "cannot be created", str(target.parent)) from error
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)


def _in_a_folder(write: Callable[[], _Written]) -> _Written:
    """`write()`, again if another process deletes the folder in between, which an object storage does not have."""
    for _ in range(_DELETED_BETWEEN):
        with suppress(FileNotFoundError):
            return write()
    return write()


def local_entry(path: str, status: os.stat_result) -> Entry:
    """The entry of a local file. Its tag has the time of change of the inode too, which a copy that keeps the time of
    modification cannot set back.
    """
    return Entry(path, status.st_size, f"{status.st_mtime_ns}.{status.st_ctime_ns}")


def broken_links(folder: Path) -> Iterator[tuple[str, str]]:
    """The paths of symbolic links below a folder that lead nowhere, relative to it, and what is wrong with each.

    Also of what is neither a file nor a folder: pipes, sockets and devices.

    `Storage.list` leaves them out.
    """
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        with storage_errors(path), os.scandir(path) as scanned:
            entries = list(scanned)
        for entry in entries:
            wrong = "" if entry.is_file(follow_symlinks=False) else _what_is_wrong(entry)
            if wrong:
                yield Path(entry.path).relative_to(folder).as_posix(), wrong
            elif entry.is_dir() and not _leads_up(Path(entry.path)):
                waiting.append(entry.path)


def _what_is_wrong(entry: os.DirEntry[str]) -> str:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return "a link to itself" if error.errno == errno.ELOOP else "a link to nothing"
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "no file, but a pipe, socket or device"


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder that contains it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


@contextmanager
def _absent() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _write_through(path: Path, blocks: Iterable[Block]) -> None:
    """Write and fsync, so that the renamed file is not empty after a power failure."""
    with open(path, "wb") as handle:
        handle.writelines(blocks)
        handle.flush()
        os.fsync(handle.fileno())
