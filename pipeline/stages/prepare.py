"""prepare: the source's images as Parquet shards of a training and a validation split; every image is readable.

The listing is split into units; a unit is a Ray task with its own record, so that an interrupted attempt resumes.
Reading, decoding and writing are in `pipeline.data`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import FileRecord, Outcome
from pipeline.config import Config
from pipeline.data import (
    Exceptions,
    FolderUnit,
    PreparedUnit,
    TarUnit,
    Unit,
    broken_links,
    check_prepared,
    class_names,
    exceptions_of,
    list_source,
    prepare_unit,
    work_units,
)
from pipeline.errors import DataError
from pipeline.storage import open_storage
from pipeline.workflow import StageContext


@dataclass(frozen=True)
class Spec:
    """One task: a unit, and the folder for its shards."""

    unit: Unit
    config: Config
    root: str
    folder: str
    training: frozenset[str]  # keys that train whatever the hash says


def prepare(spec: Spec) -> dict[str, Any]:
    """Read, check and write one unit; returns its `PreparedUnit` as JSON."""
    storage, config = open_storage(spec.root), spec.config
    made = prepare_unit(spec.unit, config.data, config.seed, storage, spec.folder, spec.training)
    return made.model_dump(mode="json")


def run(context: StageContext) -> Outcome:
    data = context.config.data
    listing = list_source(data)
    work = work_units(listing, data)
    names = class_names(listing, data)
    exceptions = exceptions_of(work, data, context.config.seed)
    remarks = [*listing.remarks, *_about(exceptions)]
    for remark in remarks:
        context.say(remark)
    specs = [
        Spec(
            unit,
            context.config,
            context.storage.root,
            context.writer.folder,
            exceptions.training.get(unit.index, frozenset()),
        )
        for unit in work
    ]
    weights = [_images(spec.unit, data.shard_rows) for spec in specs]
    records = context.map(prepare, specs, weights, unit="images")
    units = [PreparedUnit.model_validate(record) for record in records]
    units.append(broken_links(listing, len(units)))
    check_prepared(units, data, names)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for shard in (shard for unit in units for shard in unit.shards):
        context.writer.add_stored(shard.path, FileRecord(bytes=shard.bytes, sha256=shard.sha256))
        splits[shard.split].append({"path": shard.path, "rows": shard.rows})
    counts = {name: sum(shard["rows"] for shard in split) for name, split in splits.items()}
    if counts["validation"] == 0:
        raise DataError(
            f"no validation image in {data.uri or data.format}",
            "Add images, or set data.validation_uri or a larger data.validation_share.",
        )
    quarantined = [entry.model_dump() for unit in units for entry in unit.quarantined]
    metrics = {
        "data/rows": float(sum(counts.values())),
        "data/train_rows": float(counts["train"]),
        "data/validation_rows": float(counts["validation"]),
        "data/quarantined": float(len(quarantined)),
    }
    return context.writer.outcome(
        sum(counts.values()),
        metrics,
        splits=splits,
        classes=data.class_count,
        class_names=list(names),
        remarks=remarks,
        skipped=listing.skipped,
        quarantined=quarantined,
    )


def _about(exceptions: Exceptions) -> Iterator[str]:
    forced = sum(map(len, exceptions.training.values()))
    if forced:
        yield f"{forced} classes train on one image that the share would hold out, as they had no other"
    if exceptions.untrained:
        yield f"{exceptions.untrained} classes have a single image, which validates: they are not trained on"


def _images(unit: Unit, shard_rows: int) -> int:
    """The number of images in a unit; an estimate for a tar, whose number is unknown before it is read."""
    if isinstance(unit, TarUnit):
        return shard_rows
    return len(unit.files) if isinstance(unit, FolderUnit) else unit.stop - unit.start
