"""Reads and decodes images of a prepared split, for stages that need some of them once.

The trainers read a mirror instead (`mirror.py`, `store.py`). Legend: N images, H rows, W columns.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from pipeline.artifacts import Manifest, read_checked
from pipeline.config import DataConfig
from pipeline.data.decode import Pixels, decode_batch
from pipeline.data.listing import Split
from pipeline.data.store import Labels
from pipeline.storage import Storage

_TASK_ROWS = 256  # 50 MB of decoded pixels at 256 x 256


@dataclass(frozen=True)
class Rows:
    """Rows of one file of the prepare artifact: a unit of work."""

    path: str
    rows: tuple[int, ...]


def choose_rows(prepare: Manifest, split: Split, most: int) -> list[Rows]:
    """At most `most` images of a split, evenly spaced (a source may be sorted by class), in order.

    In units of up to 256 images, none of which spans two files.
    """
    files = prepare.details["splits"][split]
    total = sum(file["rows"] for file in files)
    count = min(most, total)
    chosen = np.arange(count, dtype=np.int64) * total // max(1, count)
    units, start = list[Rows](), 0
    for file in files:
        rows = chosen[(chosen >= start) & (chosen < start + file["rows"])] - start
        units += [
            Rows(file["path"], tuple(rows[begin : begin + _TASK_ROWS].tolist()))
            for begin in range(0, len(rows), _TASK_ROWS)
        ]
        start += file["rows"]
    return units


def read_images(storage: Storage, prepare: Manifest, unit: Rows, data: DataConfig) -> tuple[Pixels, Labels]:
    """Decoded images uint8 (N, 3, H, W) at `data.image_size` and labels int64 (N,).

    ContractError if the file does not match its manifest.
    """
    with pq.ParquetFile(io.BytesIO(read_checked(storage, prepare, unit.path))) as file:
        table = file.read(columns=["label", "image"]).take(list(unit.rows))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pixels = decode_batch(table["image"].to_pylist(), data.image_size, data.center_crop, None, pool)
    labels: Labels = table["label"].to_numpy().astype(np.int64)
    return pixels, labels
