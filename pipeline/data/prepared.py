"""Reads and decodes images of a prepared split, for stages that need some of them once.

The trainers read a mirror instead (`mirror.py`, `store.py`). Legend: N images, H rows, W columns.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import Manifest, checked_copy
from pipeline.config import DataConfig
from pipeline.data.decode import Pixels, decode_batch
from pipeline.data.split import Split
from pipeline.data.store import Labels
from pipeline.storage import Storage

_TASK_ROWS = 256  # 50 MB of decoded pixels at 256 x 256


@dataclass(frozen=True)
class Rows:
    """Rows of one file of the prepare artifact: a unit of work."""

    path: str
    rows: tuple[int, ...]


def choose_rows(prepare: Manifest, split: Split, most: int | None) -> list[Rows]:
    """At most `most` images of a split (None: all), evenly spaced (a source may be sorted by class), in order.

    In units of up to 256 images, none of which spans two files.
    """
    files = prepare.details["splits"][split]
    total = sum(file["rows"] for file in files)
    chosen = spaced(total, total if most is None else most)
    units, start = list[Rows](), 0
    for file in files:
        rows = chosen[(chosen >= start) & (chosen < start + file["rows"])] - start
        units += [
            Rows(file["path"], tuple(rows[begin : begin + _TASK_ROWS].tolist()))
            for begin in range(0, len(rows), _TASK_ROWS)
        ]
        start += file["rows"]
    return units


def thinned(units: Sequence[Rows], most: int) -> list[Rows]:
    """At most `most` of the units' rows, evenly spaced (`spaced`), in order."""
    kept, found, start = spaced(sum(len(unit.rows) for unit in units), most), list[Rows](), 0
    for unit in units:
        inside = kept[(kept >= start) & (kept < start + len(unit.rows))] - start
        if len(inside):
            found.append(Rows(unit.path, tuple(unit.rows[place] for place in inside.tolist())))
        start += len(unit.rows)
    return found


def spaced(total: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 to total - 1, evenly spaced, in order: int64."""
    count = min(most, total)
    chosen: np.ndarray = np.arange(count, dtype=np.int64) * total // max(1, count)
    return chosen


def read_images(storage: Storage, prepare: Manifest, unit: Rows, data: DataConfig) -> tuple[Pixels, Labels]:
    """Decoded images uint8 (N, 3, H, W) at `data.image_size` and labels int64 (N,).

    ContractError if the file does not match its manifest. Beside the result, one row group is in memory.
    """
    pixels = np.empty((len(unit.rows), 3, data.image_size, data.image_size), np.uint8)
    labels = np.empty(len(unit.rows), np.int64)
    done = 0
    with (
        checked_copy(storage, prepare, unit.path) as path,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        for table in read_rows(path, unit.rows, ("label", "image")):
            part = slice(done, done + table.num_rows)
            images = table["image"].to_pylist()
            pixels[part] = decode_batch(images, data.image_size, data.center_crop, None, pool)
            labels[part] = table["label"].to_numpy()
            done = part.stop
    return pixels, labels


def read_rows(path: Path, rows: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows (ascending) of a local shard, a row group at a time, which is all that is read into memory."""
    wanted = np.asarray(rows, np.int64)
    with pq.ParquetFile(path) as file:
        first = 0  # row of the file
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            inside = wanted[(wanted >= first) & (wanted < stop)]
            if len(inside):
                yield file.read_row_group(group, columns=list(columns)).take(inside - first)
            first = stop
