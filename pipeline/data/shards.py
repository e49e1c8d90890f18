"""Writes shards of images and latents as Parquet files. `store.py` reads them, from the mirror.

Legend: N rows, D latent channels, h w latent rows and columns. Equal rows give equal bytes.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pipeline.data.split import Split
from pipeline.storage import Storage

Moments = npt.NDArray[np.float16]

IMAGE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        # The encoded bytes of the source. Large: 32-bit offsets would overflow where a reader joins 2 GiB of them.
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)
SHAPE = b"shape"  # key in the metadata of a latent shard's schema; its value is b"D,h,w"
_RECORD = "record"  # key in the metadata of a latent shard's file
_MAGIC, _TAIL = b"PAR1", 8  # Parquet's first bytes; its last ones are the length of its metadata and these again
_GROUP_ROWS, _GROUP_BYTES = 1024, 64 << 20  # limits of a row group, which a reader holds in memory


class StoredExample(NamedTuple):
    """A row of an image shard. Width and height are those of the upright image, in pixels."""

    key: str
    label: int
    image: bytes
    width: int
    height: int


class ShardRecord(BaseModel):
    """A stored shard of one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str  # relative to the artifact
    split: Split
    rows: int
    labels: dict[int, int]  # label -> rows
    bytes: int
    sha256: str


class ImageShardWriter:
    """Writes rows one by one to a local Parquet file, with one row group in memory. Use it in a `with` block.

    A row group ends before 1024 rows, or 64 MiB of images; a larger image has one of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self.bytes = 0  # of images, as they were added
        self.labels: Counter[int] = Counter()
        self._pending: list[StoredExample] = []
        self._pending_bytes = 0
        self._writer = pq.ParquetWriter(path, IMAGE_SCHEMA, compression="zstd", use_dictionary=["label"])

    def add(self, example: StoredExample) -> None:
        size = len(example.image)
        if self._pending and (len(self._pending) >= _GROUP_ROWS or self._pending_bytes + size > _GROUP_BYTES):
            self._flush()
        self._pending.append(example)
        self._pending_bytes += size
        self.rows += 1
        self.labels[example.label] += 1
        self.bytes += size

    def _flush(self) -> None:
        batch = pa.RecordBatch.from_arrays(
            [pa.array([row[i] for row in self._pending], kind.type) for i, kind in enumerate(IMAGE_SCHEMA)],
            schema=IMAGE_SCHEMA,
        )
        self._pending, self._pending_bytes = [], 0  # before Parquet makes its own copies
        self._writer.write_batch(batch, row_group_size=_GROUP_ROWS)

    def close(self) -> None:
        """Complete the file."""
        if self._pending:
            self._flush()
        self._writer.close()

    def discard(self) -> None:
        """Close the file without the rows in memory."""
        self._writer.close()

    def __enter__(self) -> "ImageShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


def write_latent_shard(
    path: Path, keys: Sequence[str], labels: npt.ArrayLike, mean_NDhw: Moments, logvar_NDhw: Moments, record: str = ""
) -> None:
    """Write raw moments (N, D, h, w) in fp16 to a local Parquet file: zstd, plain encoding. `record` is kept in its
    metadata, for `latent_record`.

    Byte-stream-split would save another tenth of the size and take four times as long, but DuckDB reads it for 32-bit
    and 64-bit values only.
    """
    shape = mean_NDhw.shape[1:]
    schema = latent_schema(shape)
    columns = [pa.array(keys, pa.string()), pa.array(np.asarray(labels), pa.int32())]
    for name, moments in (("mean", mean_NDhw), ("logvar", logvar_NDhw)):
        if moments.dtype != np.float16 or moments.shape != (len(keys), *shape):
            raise ValueError(f"{name} is {moments.dtype} {moments.shape}, not float16 {(len(keys), *shape)}")
        values = pa.array(np.ascontiguousarray(moments).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(values, type=schema.field(name).type))
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        writer.write_table(pa.table(columns, schema=schema), row_group_size=max(1, len(keys)))
        writer.add_key_value_metadata({_RECORD: record})


def latent_record(storage: Storage, path: str, size: int) -> str:
    """The record of a whole shard of latents of `size` bytes, of which only the end is read."""
    with storage.open(path, size - _TAIL) as end:
        length = int.from_bytes(end.read(_TAIL)[:4], "little")  # of the metadata before it
    with storage.open(path, size - _TAIL - length) as end:
        metadata = pq.read_metadata(pa.BufferReader(_MAGIC + end.read())).metadata
    record: bytes = metadata[_RECORD.encode()]
    return record.decode()


def latent_schema(shape: tuple[int, ...]) -> pa.Schema:
    """Columns of a latent shard; `shape` is (D, h, w)."""
    moments = pa.list_(pa.field("element", pa.float16(), nullable=False), int(np.prod(shape)))
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("mean", moments, nullable=False),
            pa.field("logvar", moments, nullable=False),
        ],
        metadata={SHAPE: ",".join(str(side) for side in shape)},
    )
