"""The sources: splits a listing into units of work, and reads the encoded images of a unit.

There is one small picklable class per layout (`folders.py`, `parquet.py`, `tars.py`); workers read the units. Nothing
is decoded or stored here.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.config import DataConfig
from pipeline.data import parquet
from pipeline.data.folders import FolderUnit, folder_units
from pipeline.data.listing import DIGITS, Listing
from pipeline.data.parquet import ParquetUnit, parquet_units
from pipeline.data.raw import AHEAD, RawExample, check_heif, check_label
from pipeline.data.split import Split, forced_training, split_of, without_training
from pipeline.data.tars import TarIndex, TarUnit, index_tar, tar_units
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


def work_units(listing: Listing, data: DataConfig, tars: Sequence[TarIndex] | None = None) -> list[Unit]:
    """The units of both splits, of `data.shard_rows` images each (a compressed tar is one), numbered in order.

    A pure function of the source's content. In units without a split, each row is assigned to one later. Reads the
    footers of Parquet files; DataError if one is damaged or lacks image or label columns, and for HEIF images without
    the package that reads them. `tars`: the indices of the tars of `listed_tars`; None: they are made here, with errors
    as `index_tar`.
    """
    check_heif(listing.train_root, listing.heif)
    size = data.shard_rows
    if listing.format == "digits":
        starts = enumerate(range(0, DIGITS, size))
        return [DigitsUnit(index, None, start, min(start + size, DIGITS)) for index, start in starts]
    units: list[Unit] = []
    if tars is None:
        tars = [index_tar(root, entry.path, data.class_count) for root, entry in listed_tars(listing)]
    indices = iter(tars)
    for split, root, entries in _splits(listing):
        if listing.format == "folder":
            level = listing.validation_level if split == "validation" else listing.train_level
            units += folder_units(len(units), split, root, entries, listing.classes, level, size)
        elif listing.format == "parquet":
            units += parquet_units(len(units), split, root, entries, data)
        else:
            for _ in entries:
                units += tar_units(len(units), split, root, next(indices), size)
    return units


def listed_tars(listing: Listing) -> list[tuple[str, Entry]]:
    """Each tar of both splits with its root, in order; none for other formats."""
    if listing.format != "webdataset":
        return []
    return [(root, entry) for _, root, entries in _splits(listing) for entry in entries]


def class_names(listing: Listing, data: DataConfig) -> tuple[str, ...]:
    """The names of the classes by label: of folders, or of a ClassLabel in Parquet files; empty without names.

    Errors as `check_same_names`.
    """
    if listing.format == "parquet":
        return parquet.class_names([(root, entries) for _, root, entries in _splits(listing)], data)
    return listing.classes


class Exceptions(NamedTuple):
    """What a share of validation images does to small classes."""

    training: dict[int, frozenset[str]]  # by unit: keys that train although the hash holds them out
    untrained: int  # classes of one image that is held out


def exceptions_of(units: Sequence[Unit], data: DataConfig, seed: int) -> Exceptions:
    """See `forced_training`. Reads the labels of Parquet files. DataError for a label that is no whole number."""
    drawn = [unit for unit in units if unit.split is None and not isinstance(unit, DigitsUnit)]
    trained: set[int] = set()
    held: dict[int, dict[str, int]] = {}  # label -> key -> unit, of labels of which no image trains so far
    for unit, key, label in _labelled(drawn):
        if label in trained:
            continue
        held.setdefault(label, {})[key] = unit.index
        if split_of(key, seed, data.validation_share) == "train":
            trained.add(label)
            del held[label]
    forced = forced_training(held, seed, data.validation_share)
    training: dict[int, frozenset[str]] = {}
    for keys in held.values():
        for key in forced & keys.keys():
            training[keys[key]] = training.get(keys[key], frozenset()) | {key}
    return Exceptions(training, without_training(held, seed, data.validation_share))


def _labelled(units: Sequence[FolderUnit | ParquetUnit | TarUnit]) -> Iterator[tuple[Unit, str, int]]:
    """Each unit with the key and label of each of its images; the labels of a few units are in memory."""
    with ThreadPoolExecutor(AHEAD, "labels") as pool:
        for start in range(0, len(units), AHEAD):
            part = units[start : start + AHEAD]
            for unit, labels in zip(part, pool.map(lambda unit: list(unit.labels()), part), strict=True):
                for key, label in labels:
                    yield unit, key, label


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
        check_label(example.label, example.key, data.class_count)
        yield example
