"""Images in Parquet files, as Hugging Face stores them: units of work, and how their rows are read.

Which columns hold images and labels is in `parquet_columns.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import DataConfig
from pipeline.data.parquet_columns import check_same_names, find_columns, names_of_labels
from pipeline.data.raw import AHEAD, RawExample, as_label, read_errors
from pipeline.data.split import Split
from pipeline.errors import DataError
from pipeline.storage import Entry, Storage, open_storage

Result = TypeVar("Result")

_BATCH_ROWS = 64  # rows of a file in memory at once, fewer if they are large:
_BATCH_BYTES = 32 << 20
_BUFFER = 8 << 20  # bytes that are read at once; otherwise Arrow holds the whole column of a row group


@dataclass(frozen=True)
class ParquetUnit:
    """Rows start to stop - 1 of one Parquet file."""

    index: int
    split: Split | None
    uri: str
    path: str
    start: int
    stop: int
    image_column: str
    label_column: str

    def read(self) -> Iterator[RawExample]:
        for first, rows, batch in self._batches(self.image_column, self.label_column):
            images, labels = batch.column(self.image_column), batch.column(self.label_column)
            contents = pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images
            for row in rows:
                key = self._key(first + row)
                content = contents[row].as_py()
                if content is None:
                    _check_not_by_path(images[row].as_py(), key)
                yield RawExample(key, as_label(labels[row].as_py(), key), content or b"")

    def labels(self) -> Iterator[tuple[str, int]]:
        """The key and label of each row; no image is read."""
        for first, rows, batch in self._batches(self.label_column):
            labels = batch.column(self.label_column).to_pylist()
            for row in rows:
                key = self._key(first + row)
                yield key, as_label(labels[row], key)

    def _key(self, row: int) -> str:
        return f"{self.path}#{row}"

    def _batches(self, *columns: str) -> Iterator[tuple[int, range, pa.RecordBatch]]:
        """Batches of these columns that have rows of this unit: the first row of the batch in the file, which rows of
        the batch are the unit's, and the batch.
        """
        with _parquet(open_storage(self.uri), self.path) as file:
            first = 0  # row of the file
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                end = first + group.num_rows
                if first < self.stop and end > self.start:
                    yield from self._of_group(file, number, first, list(columns))
                first = end

    def _of_group(
        self, file: pq.ParquetFile, number: int, first: int, columns: list[str]
    ) -> Iterator[tuple[int, range, pa.RecordBatch]]:
        group = file.metadata.row_group(number)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)))
        for batch in file.iter_batches(rows, row_groups=[number], columns=columns):
            own = range(max(self.start - first, 0), min(self.stop - first, batch.num_rows))
            if own:
                yield first, own, batch
            first += batch.num_rows
            if first >= self.stop:
                return


def parquet_units(
    first: int, split: Split | None, root: str, entries: tuple[Entry, ...], data: DataConfig
) -> Iterator[ParquetUnit]:
    """Units of `data.shard_rows` rows. DataError if a file has no image or label column, or no file has rows."""

    def look(file: pq.ParquetFile, path: str) -> tuple[int, tuple[str, str]]:
        return file.metadata.num_rows, find_columns(file.schema_arrow, path, data.image_column, data.label_column)

    found = _of_footers(root, entries, look)
    if not sum(rows for rows, _ in found):
        raise DataError(f"{root}: the source is empty, its Parquet files have no rows", "Correct data.uri.")
    index = first
    for entry, (rows, columns) in zip(entries, found, strict=True):
        for start in range(0, rows, data.shard_rows):
            stop = min(start + data.shard_rows, rows)
            yield ParquetUnit(index, split, root, entry.path, start, stop, *columns)
            index += 1


def class_names(splits: Sequence[tuple[str, tuple[Entry, ...]]], data: DataConfig) -> tuple[str, ...]:
    """The names of the labels in the files' metadata, in the order of the labels; empty without.

    `splits`: root and files of each. DataError if files disagree, or name another number than `data.classes`.
    """

    def look(file: pq.ParquetFile, path: str) -> tuple[str, ...]:
        _, label = find_columns(file.schema_arrow, path, data.image_column, data.label_column)
        return names_of_labels(file.schema_arrow, label)

    found = [
        (f"{root}/{entry.path}", names)
        for root, entries in splits
        for entry, names in zip(entries, _of_footers(root, entries, look), strict=True)
    ]
    return check_same_names(found, data.classes)


def _of_footers(root: str, entries: tuple[Entry, ...], look: Callable[[pq.ParquetFile, str], Result]) -> list[Result]:
    """What `look` says of each opened file and its path; only footers are read."""
    storage = open_storage(root)

    def opened(entry: Entry) -> Result:
        with _parquet(storage, entry.path) as file:
            return look(file, entry.path)

    with ThreadPoolExecutor(AHEAD, "footers") as pool:
        return list(pool.map(opened, entries))


@contextmanager
def _parquet(storage: Storage, path: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, local or in a bucket; only the requested parts are read."""
    where = str(storage.local_path(path) or storage.uri(path))
    with (
        read_errors(where, "Parquet"),
        storage.open_ranges(path) as stream,
        pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False) as file,
    ):
        yield file


def _check_not_by_path(image: dict[str, object] | None, key: str) -> None:
    """DataError for an image of which only the path is stored."""
    path = (image or {}).get("path")
    if path:
        raise DataError(
            f"{key}: the image is stored by its path '{path}', its bytes are not in the file",
            "Write the bytes into the files, as datasets' Dataset.push_to_hub does, or use the images as folders.",
        )
