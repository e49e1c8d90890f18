"""The sources: splits a listing into units of work, and reads the encoded images of a unit.

There is one small picklable class per layout; workers read the units. Nothing is decoded or stored here.
"""

import io
import json
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data.listing import DIGITS, Listing, Split, class_of
from pipeline.errors import DataError
from pipeline.storage import Entry, Storage, arrow_error, open_storage

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
_MEMBERS = ("jpg", "jpeg", "png", "webp")  # suffixes of images in a tar
_AHEAD = 16  # files of a folder that are read concurrently, to hide the latency of a bucket
_BATCH = 64  # rows of a Parquet file in memory at once


class RawExample(NamedTuple):
    """An encoded image of the source, possibly unreadable."""

    key: str  # unique within its split
    label: int
    image: bytes


@dataclass(frozen=True)
class DigitsUnit:
    """Rows start to stop - 1 of scikit-learn's digits."""

    index: int
    split: Split | None
    start: int
    stop: int

    def read(self) -> Iterator[RawExample]:
        from sklearn.datasets import load_digits

        source = load_digits()
        grey = np.rint(source.images * (255 / 16)).astype(np.uint8)
        for i in range(self.start, self.stop):
            file = io.BytesIO()
            Image.fromarray(grey[i]).save(file, "PNG")
            yield RawExample(f"digits/{i:04d}", int(source.target[i]), file.getvalue())


@dataclass(frozen=True)
class FolderUnit:
    """Some image files, each with its label."""

    index: int
    split: Split | None
    uri: str
    files: tuple[tuple[str, int], ...]

    def read(self) -> Iterator[RawExample]:
        storage = open_storage(self.uri)
        pending: deque[tuple[str, int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(_AHEAD, "folder") as pool:
            for path, label in self.files:
                pending.append((path, label, pool.submit(storage.read, path)))
                if len(pending) > _AHEAD:
                    yield _fetched(*pending.popleft())
            while pending:
                yield _fetched(*pending.popleft())


@dataclass(frozen=True)
class ParquetUnit:
    """Rows start to stop - 1 of one Parquet file."""

    index: int
    split: Split | None
    uri: str
    path: str
    start: int
    stop: int

    def read(self) -> Iterator[RawExample]:
        with _parquet(*open_storage(self.uri).arrow(), self.path) as file:
            image, label = _columns(file.schema_arrow, self.path)
            first = 0  # the first row of a row group, then of a batch
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first < self.stop and first + rows > self.start:
                    yield from self._read_group(file, group, first, image, label)
                first += rows

    def _read_group(self, file: pq.ParquetFile, group: int, first: int, image: str, label: str) -> Iterator[RawExample]:
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[image, label]):
            encoded = batch.column(image)
            if pa.types.is_struct(encoded.type):
                encoded = pc.struct_field(encoded, "bytes")
            labels = batch.column(label).to_pylist()
            for row, (content, number) in enumerate(zip(encoded.to_pylist(), labels, strict=True), first):
                if self.start <= row < self.stop:
                    key = f"{self.path}#{row}"
                    yield RawExample(key, _as_label(number, key), content or b"")
            first += batch.num_rows


@dataclass(frozen=True)
class TarUnit:
    """One tar of images, each with a .cls or .json member for its label."""

    index: int
    split: Split | None
    uri: str
    path: str

    def read(self) -> Iterator[RawExample]:
        with _local(open_storage(self.uri), self.path) as local, _read_errors(f"{self.uri}/{self.path}", "a tar"):
            if local.stat().st_size % tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it is truncated")
            with tarfile.open(local, "r|") as tar:
                for key, members in _samples(tar):
                    found = [name for name in _MEMBERS if name in members]
                    if found:
                        yield RawExample(f"{self.path}/{key}", _label_of(members, key, self.path), members[found[0]])


Unit = DigitsUnit | FolderUnit | ParquetUnit | TarUnit


def work_units(listing: Listing, data: DataConfig) -> list[Unit]:
    """The units of both splits, of `data.shard_rows` images each (a tar is one unit), numbered in order.

    A pure function of the source's content. In units without a split, each row is assigned to one later. Reads the
    footers of Parquet files; DataError if one is damaged or lacks image or label columns.
    """
    size = data.shard_rows
    if listing.format == "digits":
        starts = enumerate(range(0, DIGITS, size))
        return [DigitsUnit(index, None, start, min(start + size, DIGITS)) for index, start in starts]
    units: list[Unit] = []
    for split, root, entries in _splits(listing):
        if listing.format == "folder":
            units += _folder_units(len(units), split, root, entries, listing.classes, size)
        elif listing.format == "parquet":
            units += _parquet_units(len(units), split, root, entries, size)
        else:
            units += [TarUnit(len(units) + i, split, root, entry.path) for i, entry in enumerate(entries)]
    return units


def _splits(listing: Listing) -> Iterator[tuple[Split | None, str, tuple[Entry, ...]]]:
    if listing.validation_root is None:
        yield None, listing.train_root, listing.train
    else:
        yield "train", listing.train_root, listing.train
        yield "validation", listing.validation_root, listing.validation


def read_unit(unit: Unit, data: DataConfig) -> Iterator[RawExample]:
    """The examples of a unit, in the source's order, one at a time.

    DataError for a damaged or missing file, and for a label outside of 0..data.classes - 1; StorageError if the source
    is unavailable.
    """
    for example in unit.read():
        if not 0 <= example.label < data.class_count:
            raise DataError(
                f"{example.key}: label {example.label} is out of range, data.classes is {data.class_count}",
                "Set data.classes to the number of classes, or correct the label.",
            )
        yield example


def _folder_units(
    first: int, split: Split | None, root: str, entries: tuple[Entry, ...], classes: tuple[str, ...], size: int
) -> Iterator[FolderUnit]:
    labels = {name: label for label, name in enumerate(classes)}
    for i, start in enumerate(range(0, len(entries), size)):
        files = tuple((entry.path, labels[class_of(entry.path)]) for entry in entries[start : start + size])
        yield FolderUnit(first + i, split, root, files)


def _parquet_units(
    first: int, split: Split | None, root: str, entries: tuple[Entry, ...], size: int
) -> Iterator[ParquetUnit]:
    files = open_storage(root).arrow()

    def count(entry: Entry) -> int:
        with _parquet(*files, entry.path) as file:
            _columns(file.schema_arrow, entry.path)
            rows: int = file.metadata.num_rows
            return rows

    with ThreadPoolExecutor(_AHEAD, "footers") as pool:
        counts = list(pool.map(count, entries))
    if not sum(counts):
        raise DataError(f"{root}: the source is empty, its Parquet files have no rows", "Correct data.uri.")
    index = first
    for entry, rows in zip(entries, counts, strict=True):
        for start in range(0, rows, size):
            yield ParquetUnit(index, split, root, entry.path, start, min(start + size, rows))
            index += 1


def _fetched(path: str, label: int, content: Future[bytes]) -> RawExample:
    try:
        return RawExample(path, label, content.result())
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image was removed since the source was listed", "Run again.") from error


@contextmanager
def _read_errors(where: str, what: str) -> Iterator[None]:
    """Turn errors of pyarrow and tarfile about a damaged or missing file into DataErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{where}: the file was removed since the source was listed", "Run again.") from error
    except (pa.ArrowException, tarfile.TarError, OSError) as error:
        if "AWS Error" in str(error):
            raise arrow_error(error, where) from error
        if isinstance(error, PermissionError):
            hint = "Give this user permission to read it."
        else:
            hint = "Copy it again if it is empty or truncated, or remove it."
        raise DataError(f"{where} cannot be read as {what}: {' '.join(str(error).split())}", hint) from error


@contextmanager
def _parquet(files: pyarrow.fs.FileSystem, root: str, path: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, local or in a bucket; only the requested parts are read."""
    where = f"s3://{root}/{path}" if files.type_name == "s3" else f"{root}/{path}"
    with _read_errors(where, "Parquet"), pq.ParquetFile(f"{root}/{path}", filesystem=files) as file:
        yield file


def _columns(schema: pa.Schema, path: str) -> tuple[str, str]:
    """The names of the image and the label column."""
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        raise DataError(
            f"{path}: an image or label column is missing; it has {', '.join(schema.names)}",
            f"Name them {' or '.join(IMAGE_COLUMNS)}, {' or '.join(LABEL_COLUMNS)}: the Hugging Face image layout.",
        )
    kind = schema.field(image).type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{path}: column '{image}' contains {kind}, not encoded images",
            "Store the encoded bytes of the images in it.",
        )
    return image, label


@contextmanager
def _local(storage: Storage, path: str) -> Iterator[Path]:
    """A local path of the file; a remote one is downloaded, as a download can be resumed but a stream cannot."""
    file = storage.local_path(path)
    if file is not None:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="dvae-") as folder:
        target = Path(folder, "source.tar")
        try:
            storage.download(path, target)
        except FileNotFoundError as error:
            raise DataError(
                f"{storage.uri(path)}: the file was removed since the source was listed", "Run again."
            ) from error
        yield target


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Consecutive members with the same key, as {lower-case suffix: content}; one sample is in memory at a time."""
    current, members = "", dict[str, bytes]()
    for member in tar:
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        if not member.isfile() or not stem or suffix.lower() not in (*_MEMBERS, "cls", "json"):
            continue
        key = str(path.with_name(stem))
        if key != current and members:
            yield current, members
            members = {}
        current = key
        content = tar.extractfile(member)
        assert content is not None
        members[suffix.lower()] = content.read()
    if members:
        yield current, members


def _label_of(members: dict[str, bytes], key: str, path: str) -> int:
    """The label from KEY.cls, or from "label" in KEY.json. DataError if there is none."""
    if "cls" in members:
        return _as_label(members["cls"].decode(errors="replace").strip(), f"{path}/{key}.cls")
    if "json" in members:
        try:
            return _as_label(json.loads(members["json"])["label"], f"{path}/{key}.json")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}/{key}.json: "label" is missing', "Add the label, or a .cls member.") from error
    raise DataError(f"{path}/{key}: the image has no label", "Add a .cls or .json member of the same name.")


def _as_label(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: label {value!r} is not an integer", "Use labels from 0 to data.classes - 1."
        ) from error
