"""Prepares one unit of the source: writes its readable images to shards and quarantines the others.

The stage `prepare` runs the units in parallel.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts import hash_file
from pipeline.config import DataConfig
from pipeline.data.decode import UnreadableImage, decode_image
from pipeline.data.folders import FolderUnit
from pipeline.data.listing import Listing
from pipeline.data.raw import too_large
from pipeline.data.shards import ImageShardWriter, ShardRecord, StoredExample
from pipeline.data.sources import Unit, read_unit
from pipeline.data.split import Split, split_of
from pipeline.data.tars import TarUnit
from pipeline.errors import DataError
from pipeline.storage import Storage


class Quarantined(BaseModel):
    """An image that is excluded, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    reason: str


class PreparedUnit(BaseModel):
    """The result of a unit: the shards of its images, and the excluded ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    shards: tuple[ShardRecord, ...]
    quarantined: tuple[Quarantined, ...]


def prepare_unit(
    unit: Unit, data: DataConfig, seed: int, storage: Storage, prefix: str, training: frozenset[str] = frozenset()
) -> PreparedUnit:
    """Write the unit's readable images to `{prefix}/shards/{split}-{index}-{part}.parquet`, each to its split.

    A shard ends by `data.shard_rows` or `data.shard_bytes`. `training`: keys that train whatever the hash says
    (`exceptions_of`). A pure function of these arguments and the unit's images: a repetition writes the same bytes to
    the same paths.
    Memory is a row group for each split; shards are written to a local disk and uploaded when complete, one at a time.
    Errors as `read_unit`.
    """
    quarantined = [Quarantined(key=key, reason=reason) for key, reason in _excluded(unit)]
    writers: dict[Split, _Shards] = {}
    with tempfile.TemporaryDirectory(prefix="dvae-") as folder, ExitStack() as stack:
        for key, label, image in read_unit(unit, data):
            try:
                if reason := too_large(len(image)):
                    raise UnreadableImage(reason)
                width, height = decode_image(image, data.max_pixels).size
            except UnreadableImage as error:
                quarantined.append(Quarantined(key=key, reason=error.reason))
                continue
            split = unit.split or ("train" if key in training else split_of(key, seed, data.validation_share))
            if split not in writers:
                shards = _Shards(split, unit.index, data, Path(folder), storage, prefix)
                writers[split] = stack.enter_context(shards)
            writers[split].add(StoredExample(key, label, image, width, height))
    records = [record for split in sorted(writers) for record in writers[split].records]
    return PreparedUnit(index=unit.index, shards=tuple(records), quarantined=tuple(quarantined))


def broken_links(listing: Listing, index: int) -> PreparedUnit:
    """The symbolic links of the source that lead nowhere: images that are excluded before any is read."""
    excluded = [Quarantined(key=link.path, reason=link.reason) for link in listing.broken]
    return PreparedUnit(index=index, shards=(), quarantined=tuple(excluded))


def check_prepared(
    units: Iterable[PreparedUnit], data: DataConfig, names: Sequence[str] = (), splits_given: bool = False
) -> None:
    """DataError if there is no training image, or more than the share `data.quarantine_budget` is unreadable.

    Also if a class of two or more readable images has none for training, as those that would train are unreadable; if
    the source has its own splits (`splits_given`), whatever the number. `names`: of the classes by label.
    """
    units = list(units)
    quarantined = [image for unit in units for image in unit.quarantined]
    total = len(quarantined) + sum(shard.rows for unit in units for shard in unit.shards)
    if len(quarantined) > data.quarantine_budget * total:
        first = quarantined[0]
        raise DataError(
            f"{len(quarantined)} of {total} images cannot be read; the first is {first.key}: {first.reason}",
            f"Repair or remove them, or raise data.quarantine_budget (currently {data.quarantine_budget:g}).",
        )
    if not any(shard.split == "train" for unit in units for shard in unit.shards):
        raise DataError(
            f"{data.uri or data.format}: no training image is left", "Check the source and data.validation_share."
        )
    if quarantined or splits_given:  # else `exceptions_of` has seen to it
        _check_trained(units, names, splits_given)


def _check_trained(units: Sequence[PreparedUnit], names: Sequence[str], splits_given: bool) -> None:
    counts: dict[Split, Counter[int]] = {"train": Counter(), "validation": Counter()}
    for shard in (shard for unit in units for shard in unit.shards):
        counts[shard.split].update(shard.labels)
    for label, held in sorted(counts["validation"].items()):
        if counts["train"][label] or (held == 1 and not splits_given):
            continue
        name = f"'{names[label]}'" if label < len(names) else str(label)
        raise DataError(
            f"class {name} has no readable training image, and {held} for validation",
            "Add training images of it, or remove it from the validation images."
            if splits_given
            else "Repair or remove its unreadable images (`data/quarantined`): then another of them trains.",
        )


def _excluded(unit: Unit) -> tuple[tuple[str, str], ...]:
    return unit.excluded if isinstance(unit, TarUnit | FolderUnit) else ()


class _Shards:
    """The shards of one split of a unit, written one after the other. Use it in a `with` block, then read `records`."""

    def __init__(self, split: Split, index: int, data: DataConfig, folder: Path, storage: Storage, prefix: str) -> None:
        self.split, self.index, self.data = split, index, data
        self.folder, self.storage, self.prefix = folder, storage, prefix
        self.records: list[ShardRecord] = []
        self._writer: ImageShardWriter | None = None

    def add(self, example: StoredExample) -> None:
        if self._writer is not None and self._is_full(self._writer, len(example.image)):
            self._store(self._writer)
        if self._writer is None:
            self._writer = ImageShardWriter(self.folder / f"{self.split}.parquet")
        self._writer.add(example)

    def _is_full(self, writer: ImageShardWriter, size: int) -> bool:
        return writer.rows >= self.data.shard_rows or writer.bytes + size > self.data.shard_bytes

    def _store(self, writer: ImageShardWriter) -> None:
        """Complete the current shard and upload it; its local file goes."""
        self._writer = None
        writer.close()
        path = f"shards/{self.split}-{self.index:05d}-{len(self.records):03d}.parquet"
        record = hash_file(writer.path)
        self.storage.upload(writer.path, f"{self.prefix}/{path}" if self.prefix else path)
        writer.path.unlink()
        self.records.append(
            ShardRecord(
                path=path,
                split=self.split,
                rows=writer.rows,
                labels=dict(sorted(writer.labels.items())),
                bytes=record.bytes,
                sha256=record.sha256,
            )
        )

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        if error is None:
            self._store(self._writer)
        else:
            self._writer.discard()
