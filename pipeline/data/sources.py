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
from pipeline.data.decode import HEIF
from pipeline.data.folders import FolderUnit, folder_units
from pipeline.data.listing import DIGITS, Listing
from pipeline.data.parquet import ParquetUnit, parquet_units
from pipeline.data.raw import AHEAD, RawExample
from pipeline.data.split import Split, forced_training, split_of, without_training
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
    footers of Parquet files; DataError if one is damaged or lacks image or label columns, and for HEIF images without
    the package that reads them.
    """
    _check_heif(listing)
    size = data.shard_rows
    if listing.format == "digits":
        starts = enumerate(range(0, DIGITS, size))
        return [DigitsUnit(index, None, start, min(start + size, DIGITS)) for index, start in starts]
    units: list[Unit] = []
    for split, root, entries in _splits(listing):
        if listing.format == "folder":
            level = listing.validation_level if split == "validation" else listing.train_level
            units += folder_units(len(units), split, root, entries, listing.classes, level, size)
        elif listing.format == "parquet":
            units += parquet_units(len(units), split, root, entries, data)
        else:
            units += [TarUnit(len(units) + i, split, root, entry.path) for i, entry in enumerate(entries)]
    return units


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
    drawn = [unit for unit in units if unit.split is None and isinstance(unit, FolderUnit | ParquetUnit)]
    trained: set[int] = set()
    held: dict[int, dict[str, int]] = {}  # label -> key -> unit, of labels of which no image trains so far
    with ThreadPoolExecutor(AHEAD, "labels") as pool:
        for unit, labels in zip(drawn, pool.map(lambda unit: list(unit.labels()), drawn), strict=True):
            for key, label in labels:
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


def _check_heif(listing: Listing) -> None:
    """DataError if HEIF images cannot be read here: quarantined, they would stay so after the package is installed."""
    if listing.heif and not HEIF:
        raise DataError(
            f"{listing.train_root}: {len(listing.heif)} HEIF images, such as {listing.heif[0]}, need pillow-heif",
            "Install it on every node: pip install 'denoising-vae[heif]'. Or convert the images.",
        )


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
