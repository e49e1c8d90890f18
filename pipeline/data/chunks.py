"""Reads a span of a prepared file and decodes it chunk by chunk, for encoding. It runs without torch.

Legend: N rows, H rows of pixels, W columns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.decode import Pixels, UnreadableImage, decode_image, transform

CHUNK_BYTES = 8 << 20  # of pixels in a chunk, about: a reader holds two or three of them
CHUNK_ROWS = 512


class Chunk(NamedTuple):
    """Consecutive rows, whether readable or not. The two arrays pass through Ray's object store without a copy."""

    start: int  # the first row, counted from the start of the span
    pixels: Pixels  # (N, H, W, 3); zeros where the image is not readable
    readable: npt.NDArray[np.bool_]  # (N,)
    keys: list[str]
    labels: npt.NDArray[np.int32]  # (N,)
    unreadable: list[dict[str, str]]  # key and reason


class Decoding(NamedTuple):
    """The config's fields that decide the pixels."""

    image_size: int
    center_crop: bool
    max_pixels: int


def chunk_rows(image_size: int, multiple: int) -> int:
    """Rows of a chunk: a multiple of `multiple`, as near below the limits as possible."""
    rows = min(CHUNK_ROWS, CHUNK_BYTES // (3 * image_size**2))
    return max(1, rows // multiple) * multiple


def decoded_chunks(path: Path, start: int, rows: int, size: int, decoding: Decoding) -> Iterator[Chunk]:
    """Rows `start` to `start + rows - 1` of a prepared Parquet file, in chunks of `size`; the last may be smaller.

    One batch of `size` encoded images is in memory at a time, next to what Parquet holds of a row group.
    """
    done = 0
    for batch in _batches(path, start, rows, size):
        yield _decoded(batch, done, decoding)
        done += batch.num_rows


def _batches(path: Path, start: int, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """Batches of exactly `size` rows, but for the last one, from the row groups of this span."""
    with pq.ParquetFile(path) as file:
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        first, last = np.searchsorted(ends, [start, start + rows - 1], side="right")
        skipped = start - (int(ends[first - 1]) if first else 0)
        held: list[pa.RecordBatch] = []
        left = rows
        stored = file.iter_batches(size, row_groups=list(range(first, last + 1)), columns=["key", "label", "image"])
        for batch in stored:
            part = batch.slice(skipped, left)
            skipped -= min(skipped, batch.num_rows)
            left -= part.num_rows
            held.append(part)
            if sum(one.num_rows for one in held) >= size:
                whole = pa.concat_batches(held)
                yield whole.slice(0, size)
                held = [whole.slice(size)]
        rest = pa.concat_batches(held)
        if rest.num_rows:
            yield rest


def _decoded(batch: pa.RecordBatch, start: int, decoding: Decoding) -> Chunk:
    size = decoding.image_size
    keys: list[str] = batch.column("key").to_pylist()
    pixels = np.zeros((batch.num_rows, size, size, 3), np.uint8)
    readable = np.ones(batch.num_rows, np.bool_)
    unreadable = []
    for i, image in enumerate(batch.column("image")):
        try:
            opened = decode_image(memoryview(image.as_buffer()), decoding.max_pixels)
            pixels[i] = transform(opened, size, decoding.center_crop)
        except UnreadableImage as error:
            readable[i] = False
            unreadable.append({"key": keys[i], "reason": error.reason})
    labels = batch.column("label").to_numpy(zero_copy_only=False).astype(np.int32)
    return Chunk(start, pixels, readable, keys, labels, unreadable)
