"""Prepares one unit of the source: writes its readable images to shards and quarantines the others.

The stage `prepare` runs the units in parallel.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts import hash_file
from pipeline.config import DataConfig
from pipeline.data.decode import UnreadableImage, decode_image
from pipeline.data.listing import Listing
from pipeline.data.shards import ImageShardWriter, ShardRecord, StoredExample
from pipeline.data.sources import Unit, read_unit
from pipeline.data.split import Split, split_of
from pipeline.errors import DataError
from pipeline.storage import Storage


class Quarantined(BaseModel):
    """An image that is excluded, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    reason: str


class PreparedUnit(BaseModel):
    """The result of a unit: at most one shard per split, and the excluded images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    shards: tuple[ShardRecord, ...]
    quarantined: tuple[Quarantined, ...]


def prepare_unit(
    unit: Unit, data: DataConfig, seed: int, storage: Storage, prefix: str, training: frozenset[str] = frozenset()
) -> PreparedUnit:
    """Write the unit's readable images to `{prefix}/shards/{split}-{index}.parquet`, each to its split.

    `training`: keys that train whatever the hash says (`exceptions_of`).
    A pure function of the unit's images, `data` and `seed`: a repetition writes the same bytes to the same paths.
    Memory is one row group; shards are written to a local disk and uploaded when complete. Errors as `read_unit`.
    """
    with tempfile.TemporaryDirectory(prefix="dvae-") as folder:
        writers, quarantined = _write_shards(unit, data, seed, training, Path(folder))
        shards = [_upload(writers[split], split, unit.index, storage, prefix) for split in sorted(writers)]
    return PreparedUnit(index=unit.index, shards=tuple(shards), quarantined=tuple(quarantined))


def broken_links(listing: Listing, index: int) -> PreparedUnit:
    """The symbolic links of the source that lead nowhere: images that are excluded before any is read."""
    excluded = [Quarantined(key=link.path, reason=link.reason) for link in listing.broken]
    return PreparedUnit(index=index, shards=(), quarantined=tuple(excluded))


def check_prepared(units: Iterable[PreparedUnit], data: DataConfig, names: Sequence[str] = ()) -> None:
    """DataError if there is no training image, or more than the share `data.quarantine_budget` is unreadable.

    Also if a class of two or more readable images has none for training, as those that would train are unreadable.
    `names`: of the classes by label.
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
    if quarantined:
        _check_trained(units, names)


def _check_trained(units: Sequence[PreparedUnit], names: Sequence[str]) -> None:
    counts: dict[Split, Counter[int]] = {"train": Counter(), "validation": Counter()}
    for shard in (shard for unit in units for shard in unit.shards):
        counts[shard.split].update(shard.labels)
    for label, held in sorted(counts["validation"].items()):
        if held > 1 and not counts["train"][label]:
            name = f"'{names[label]}'" if label < len(names) else str(label)
            raise DataError(
                f"class {name} has no readable training image, and {held} for validation",
                "Repair or remove its unreadable images (`data/quarantined`): then another of them trains.",
            )


def _write_shards(
    unit: Unit, data: DataConfig, seed: int, training: frozenset[str], folder: Path
) -> tuple[dict[Split, ImageShardWriter], list[Quarantined]]:
    writers: dict[Split, ImageShardWriter] = {}
    quarantined = []
    with ExitStack() as stack:
        for key, label, image in read_unit(unit, data):
            try:
                width, height = decode_image(image, data.max_pixels).size
            except UnreadableImage as error:
                quarantined.append(Quarantined(key=key, reason=error.reason))
                continue
            drawn = "train" if key in training else split_of(key, seed, data.validation_share)
            split = unit.split or drawn
            if split not in writers:
                writers[split] = stack.enter_context(ImageShardWriter(folder / f"{split}.parquet"))
            writers[split].add(StoredExample(key, label, image, width, height))
    return writers, quarantined


def _upload(writer: ImageShardWriter, split: Split, index: int, storage: Storage, prefix: str) -> ShardRecord:
    path = f"shards/{split}-{index:05d}.parquet"
    record = hash_file(writer.path)
    storage.upload(writer.path, f"{prefix}/{path}" if prefix else path)
    return ShardRecord(
        path=path,
        split=split,
        rows=writer.rows,
        labels=dict(sorted(writer.labels.items())),
        bytes=record.bytes,
        sha256=record.sha256,
    )
