"""Lists a source: names and sizes of its files, their digest, class folders. No file is opened here.

It imports no pyarrow, Pillow or scikit-learn, so that `plan` and `data index` stay light. `sources.py` reads images.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pipeline.config import DataConfig
from pipeline.data.classes import check_folders
from pipeline.errors import DataError, StorageError
from pipeline.storage import Entry, Storage, open_storage, split_uri

Split = Literal["train", "validation"]
DIGITS = 1797  # images in scikit-learn's digits
DIGITS_CLASSES = 10
DIGITS_REVISION = hashlib.sha256(b"scikit-learn digits: 1797 images of 8 x 8, 16 grey levels").hexdigest()
SUFFIXES = {
    "folder": frozenset(
        (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
    ),
    "parquet": frozenset((".parquet",)),
    "webdataset": frozenset((".tar",)),
}


@dataclass(frozen=True)
class Listing:
    """The files of both splits, sorted by path; paths are relative to the split's root.

    For format digits there are no files, and `train_root` is empty.
    """

    format: str
    train_root: str
    train: tuple[Entry, ...]
    validation_root: str | None  # None: a share of the training images is used
    validation: tuple[Entry, ...]
    classes: tuple[str, ...]  # names of the class folders in the order of their labels; empty for other formats
    digest: str  # sha256 in hex over format, paths and sizes: the value of `data.revision`

    @property
    def files(self) -> int:
        return len(self.train) + len(self.validation)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in (*self.train, *self.validation))


def list_source(data: DataConfig, progress: Callable[[int], None] | None = None) -> Listing:
    """List the training and the validation URI; `progress` receives the number of files found so far.

    DataError if the source is not configured, missing, empty or unreadable, has another number of class folders than
    `data.classes`, or does not match the configured `data.revision`.
    """
    if data.format == "digits":
        listing = Listing("digits", "", (), None, (), (), DIGITS_REVISION)
    else:
        listing = _list_files(data, progress or (lambda _: None))
    if data.revision is not None and data.revision != listing.digest:
        raise DataError(
            f"data.uri {data.uri}: the source has revision {listing.digest[:12]}, not {data.revision[:12]}",
            "Run `python -m pipeline data index`, then again without data.revision; or restore the source.",
        )
    return listing


def class_of(path: str) -> str:
    """The class folder of an image: the first part of its path."""
    return path.partition("/")[0]


def _list_files(data: DataConfig, progress: Callable[[int], None]) -> Listing:
    if data.uri is None:
        raise DataError("data.uri is not set", "Set it to the images' URI: --set data.uri=URI, or in the site file.")
    train_root, train = _entries("data.uri", data.uri, data.format, progress)
    validation_root, validation = None, tuple[Entry, ...]()
    if data.validation_uri is not None:
        validation_root, validation = _entries(
            "data.validation_uri", data.validation_uri, data.format, lambda found: progress(len(train) + found)
        )
    classes = _classes(data, train, validation) if data.format == "folder" else ()
    digest = _digest(data.format, {"train": train, "validation": validation})
    return Listing(data.format, train_root, train, validation_root, validation, classes, digest)


def _entries(field: str, uri: str, layout: str, progress: Callable[[int], None]) -> tuple[str, tuple[Entry, ...]]:
    """The root URI and the sorted files of this layout below it. A URI may also be a single Parquet or tar file."""
    suffixes = SUFFIXES[layout]
    names = sorted(suffixes)
    found = []
    try:
        storage, entries = _open(uri, layout)
        for entry in entries:
            if _is_hidden(entry.path) or PurePosixPath(entry.path).suffix.lower() not in suffixes:
                continue
            if layout == "folder" and "/" not in entry.path:
                continue  # an image outside of class folders has no label
            found.append(entry)
            if len(found) % 1000 == 0:
                progress(len(found))
    except FileNotFoundError as error:
        raise DataError(f"{field} {uri}: '{error.filename or error}' does not exist", "Correct the URI.") from error
    except StorageError as error:
        raise DataError(f"{field} {error.what}", error.hint) from error
    if not found:
        where = "in its class folders" if layout == "folder" else "there"
        raise DataError(
            f"{field} {uri}: the source is empty, no {'/'.join(names[:8])} file {where}",
            f"Correct the URI, or data.format (currently {layout}).",
        )
    progress(len(found))
    return storage.root, tuple(sorted(found))


def _open(uri: str, layout: str) -> tuple[Storage, Iterable[Entry]]:
    if layout != "folder" and PurePosixPath(uri).suffix.lower() in SUFFIXES[layout]:
        storage, name = split_uri(uri)
        file = storage.local_path(name)
        if file is None:
            return storage, (entry for entry in storage.list() if entry.path == name)
        if file.is_file():
            return storage, [Entry(name, file.stat().st_size)]
    storage = open_storage(uri)
    folder = storage.local_path()
    if folder is not None and not folder.exists():
        raise FileNotFoundError(2, "no such folder", str(folder))
    return storage, storage.list()


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _classes(data: DataConfig, train: tuple[Entry, ...], validation: tuple[Entry, ...]) -> tuple[str, ...]:
    """The sorted class folders of the training images; a label is the place in this order."""
    classes = tuple(sorted({class_of(entry.path) for entry in train}))
    check_folders(data, len(classes))
    unknown = sorted({class_of(entry.path) for entry in validation} - set(classes))
    if unknown:
        raise DataError(
            f"data.validation_uri {data.validation_uri}: class folder '{unknown[0]}' is not among the training classes",
            "Give the validation folders the names of the training folders.",
        )
    return classes


def _digest(layout: str, splits: dict[Split, tuple[Entry, ...]]) -> str:
    digest = hashlib.sha256(layout.encode())
    for line in _lines(splits):
        try:
            digest.update(line.encode())
        except UnicodeEncodeError as error:
            raise DataError(f"the file name {line.split(chr(0))[1]!a} is not UTF-8", "Rename the file.") from error
    return digest.hexdigest()


def _lines(splits: dict[Split, tuple[Entry, ...]]) -> Iterator[str]:
    for split, entries in splits.items():
        for entry in entries:
            yield f"\n{split}\0{entry.path}\0{entry.bytes}"
