"""The sources: splits a listing into units of work, and reads the encoded images of a unit.

There is one small picklable class per layout (`folders.py`, `parquet.py`, `tars.py`); workers read the units. Nothing
is decoded or stored here.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data.folders import FolderUnit, folder_units
from pipeline.data.listing import DIGITS, Listing, Split
from pipeline.data.parquet import ParquetUnit, parquet_units
from pipeline.data.raw import RawExample
from pipeline.data.tars import TarUnit
from pipeline.errors import DataError
from pipeline.storage import Entry


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
            units += folder_units(len(units), split, root, entries, listing.classes, size)
        elif listing.format == "parquet":
            units += parquet_units(len(units), split, root, entries, size)
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
