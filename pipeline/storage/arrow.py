"""A storage as a file system of Arrow: what Ray Train, which knows no other kind, keeps its own small files in.

Arrow has an S3 client of its own, which finds proxies, regions and credentials in other ways than boto3. So that all
reach S3 alike, this hands on to `Storage`.
"""

import io
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileSystemHandler, FileType, PyFileSystem

from pipeline.storage.base import Storage


def arrow_files(storage: Storage) -> FileSystem:
    """Arrow's file system with the files of a storage, by their paths there. It can be pickled."""
    return PyFileSystem(_Handler(storage))


class _Handler(FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """What Arrow asks of a file system. A folder is there as long as it has files, or is asked for by Ray.

    NotImplementedError for what only local file systems have: moving, appending.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler) and other.storage.root == self.storage.root

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.storage.root)

    def get_type_name(self) -> str:
        return "denoising-vae"

    def normalize_path(self, path: str) -> str:
        return path.strip("/")

    # --- looking ---

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path.strip("/")) for path in paths]

    def _info(self, path: str) -> FileInfo:
        for entry in self.storage.list(path.rpartition("/")[0]):
            if entry.path == path:
                return FileInfo(path, FileType.File, size=entry.bytes)
            if entry.path.startswith(f"{path}/") or not path:
                return FileInfo(path, FileType.Directory)
        return FileInfo(path, FileType.NotFound)

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        base = selector.base_dir.strip("/")
        entries = list(self.storage.list(base))
        if not entries and not selector.allow_not_found:
            raise FileNotFoundError(base)
        found = dict[str, FileInfo]()
        for entry in entries:
            folders = entry.path.removeprefix(f"{base}/" if base else "").split("/")[:-1]
            for depth in range(1, len(folders) + 1):
                folder = "/".join(([base] if base else []) + folders[:depth])
                found[folder] = FileInfo(folder, FileType.Directory)
            found[entry.path] = FileInfo(entry.path, FileType.File, size=entry.bytes)
        direct = base.count("/") + 1 if base else 0
        return [info for path, info in found.items() if selector.recursive or path.count("/") == direct]

    # --- reading and writing ---

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(self.storage.open_ranges(path.strip("/")), mode="r")

    def open_input_stream(self, path: str) -> Any:
        return pa.PythonFile(self.storage.open(path.strip("/")), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:  # noqa: ARG002  # Arrow's signature
        return pa.PythonFile(_Written(self.storage, path.strip("/")), mode="w")

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing to do: a folder comes with its first file."""

    def delete_file(self, path: str) -> None:
        self.storage.delete(path.strip("/"))

    def delete_dir(self, path: str) -> None:
        self.storage.delete_folder(path.strip("/"))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:  # noqa: ARG002  # as above
        self.storage.delete_folder(path.strip("/"))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("the root of a storage is not emptied")

    def copy_file(self, source: str, target: str) -> None:
        self.storage.write(target.strip("/"), self.storage.read(source.strip("/")))

    def move(self, source: str, target: str) -> None:
        raise NotImplementedError(f"moving {source} to {target}")

    def open_append_stream(self, path: str, metadata: Any) -> Any:  # as above
        raise NotImplementedError(f"appending to {path}")


class _Written(io.BytesIO):
    """A file that is written when it is closed, as a whole."""

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__()
        self._storage, self._path = storage, path

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._storage.write(self._path, content)
