"""file://: files in a local folder. Each is written to a temporary file in the same folder and renamed."""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.storage.base import Block, Entry, storage_errors

_TEMPORARY = ".tmp-"


class LocalStorage:
    """Files in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100  # resolve() would follow symbolic links
        self.root = self.folder.as_uri()

    endpoint = authority = None  # no server

    def local_path(self, path: str = "") -> Path:
        return self.folder / path

    def arrow(self, path: str = "", lasting: bool = False) -> tuple[Any, str]:  # noqa: ARG002  # no credentials
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), str(self.local_path(path))

    def uri(self, path: str = "") -> str:
        return self.local_path(path).as_uri()

    def read(self, path: str) -> bytes:
        with storage_errors(str(self.local_path(path))):
            return self.local_path(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        self.write_stream(path, [data])

    def write_stream(self, path: str, blocks: Iterable[Block]) -> None:
        with self._temporary(path) as temporary:
            _write_through(temporary, blocks)
            os.replace(temporary, self.local_path(path))

    def write_new(self, path: str, data: bytes) -> bool:
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
                self.write(path, data)
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
            for folder, _, names in os.walk(base, onerror=on_error, followlinks=True):
                for name in names:
                    if not name.startswith(_TEMPORARY):
                        file = Path(folder, name)
                        with suppress(FileNotFoundError):  # deleted in the meantime
                            found.append(Entry(file.relative_to(self.folder).as_posix(), file.stat().st_size))
        yield from sorted(found)

    def folders(self, prefix: str = "") -> Sequence[str]:
        base = self.local_path(prefix)
        with storage_errors(str(base)):
            return sorted(entry.name for entry in base.iterdir() if entry.is_dir()) if base.exists() else []

    def open(self, path: str) -> BinaryIO:
        with storage_errors(str(self.local_path(path))):
            return open(self.local_path(path), "rb")

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


def _write_through(path: Path, blocks: Iterable[Block]) -> None:
    """Write and fsync, so that the renamed file is not empty after a power failure."""
    with open(path, "wb") as handle:
        handle.writelines(blocks)
        handle.flush()
        os.fsync(handle.fileno())
