"""Images in class folders: units of work, and how they are read. Listing the folders is in `listing.py`."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.data.find import class_of
from pipeline.data.raw import AHEAD, RawExample, too_large
from pipeline.data.split import Split
from pipeline.errors import DataError
from pipeline.storage import Entry, open_storage


@dataclass(frozen=True)
class FolderUnit:
    """Some image files, each with its label."""

    index: int
    split: Split | None
    uri: str
    files: tuple[tuple[str, int], ...]
    excluded: tuple[tuple[str, str], ...] = ()  # keys and reasons

    def labels(self) -> Iterator[tuple[str, int]]:
        """The key and label of each image."""
        yield from self.files

    def read(self) -> Iterator[RawExample]:
        storage = open_storage(self.uri)
        pending: deque[tuple[str, int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(AHEAD, "folder") as pool:
            for path, label in self.files:
                pending.append((path, label, pool.submit(storage.read, path)))
                if len(pending) > AHEAD:
                    yield _fetched(*pending.popleft())
            while pending:
                yield _fetched(*pending.popleft())


def folder_units(
    first: int,
    split: Split | None,
    root: str,
    entries: tuple[Entry, ...],
    classes: tuple[str, ...],
    class_level: int,
    size: int,
) -> Iterator[FolderUnit]:
    """Units of `size` images; `class_level` as in `class_of`. Files that are too large to be read are excluded."""
    labels = {name: label for label, name in enumerate(classes)}
    for i, start in enumerate(range(0, len(entries), size)):
        part = [(entry, too_large(entry.bytes)) for entry in entries[start : start + size]]
        files = tuple((entry.path, labels[class_of(entry.path, class_level)]) for entry, reason in part if not reason)
        yield FolderUnit(first + i, split, root, files, tuple((entry.path, reason) for entry, reason in part if reason))


def _fetched(path: str, label: int, content: Future[bytes]) -> RawExample:
    try:
        return RawExample(path, label, content.result())
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image was removed since the source was listed", "Run again.") from error
