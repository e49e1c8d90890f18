"""Prepares one unit of the source: writes its readable images to shards and quarantines the others.

The stage `prepare` runs the units in parallel.
"""

import hashlib
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts import hash_file
from pipeline.config import DataConfig
from pipeline.data.decode import UnreadableImage, decode_image
from pipeline.data.listing import Split
from pipeline.data.shards import ImageShardWriter, ShardRecord, StoredExample
from pipeline.data.sources import Unit, read_unit
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


def prepare_unit(unit: Unit, data: DataConfig, seed: int, storage: Storage, prefix: str) -> PreparedUnit:
    """Write the unit's readable images to `{prefix}/shards/{split}-{index}.parquet`, each to its split.

    A pure function of the unit's images, `data` and `seed`: a repetition writes the same bytes to the same paths.
    Memory is one row group; shards are written to a local disk and uploaded when complete. Errors as `read_unit`.
    """
    with tempfile.TemporaryDirectory(prefix="dvae-") as folder:
        writers, quarantined = _write_shards(unit, data, seed, Path(folder))
        shards = [_upload(writers[split], split, unit.index, storage, prefix) for split in sorted(writers)]
    return PreparedUnit(index=unit.index, shards=tuple(shards), quarantined=tuple(quarantined))


def split_of(key: str, seed: int, validation_share: float) -> Split:
    """The split of an image of a source without splits: validation if a hash of (seed, key) is below the share.

    It is independent of the other images: adding images does not change the split of existing ones.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if drawn < validation_share else "train"


def check_prepared(units: Iterable[PreparedUnit], data: DataConfig) -> None:
    """DataError if there is no training image, or more than the share `data.quarantine_budget` is unreadable."""
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


def _write_shards(
    unit: Unit, data: DataConfig, seed: int, folder: Path
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
            split = unit.split or split_of(key, seed, data.validation_share)
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
