"""Images in Parquet files, as Hugging Face stores them: units of work, columns, and how they are read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.data.listing import Split
from pipeline.data.raw import AHEAD, RawExample, as_label, read_errors
from pipeline.errors import DataError
from pipeline.storage import Entry, open_storage

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
_BATCH = 64  # rows of a file in memory at once


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
                    yield RawExample(key, as_label(number, key), content or b"")
            first += batch.num_rows


def parquet_units(
    first: int, split: Split | None, root: str, entries: tuple[Entry, ...], size: int
) -> Iterator[ParquetUnit]:
    files = open_storage(root).arrow()

    def count(entry: Entry) -> int:
        with _parquet(*files, entry.path) as file:
            _columns(file.schema_arrow, entry.path)
            rows: int = file.metadata.num_rows
            return rows

    with ThreadPoolExecutor(AHEAD, "footers") as pool:
        counts = list(pool.map(count, entries))
    if not sum(counts):
        raise DataError(f"{root}: the source is empty, its Parquet files have no rows", "Correct data.uri.")
    index = first
    for entry, rows in zip(entries, counts, strict=True):
        for start in range(0, rows, size):
            yield ParquetUnit(index, split, root, entry.path, start, min(start + size, rows))
            index += 1


@contextmanager
def _parquet(files: pyarrow.fs.FileSystem, root: str, path: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, local or in a bucket; only the requested parts are read."""
    where = f"s3://{root}/{path}" if files.type_name == "s3" else f"{root}/{path}"
    with read_errors(where, "Parquet"), pq.ParquetFile(f"{root}/{path}", filesystem=files) as file:
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
