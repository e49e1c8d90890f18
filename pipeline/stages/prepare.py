"""prepare: the source's images as Parquet shards of a training and a validation split; every image is readable.

The listing is split into units; a unit is a Ray task with its own record, so that an interrupted attempt resumes.
Reading, decoding and writing are in `pipeline.data`.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import FileRecord, Outcome
from pipeline.config import Config
from pipeline.data import (
    FolderUnit,
    PreparedUnit,
    Split,
    TarUnit,
    Unit,
    check_labels,
    check_prepared,
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


def prepare(spec: Spec) -> dict[str, Any]:
    """Read, check and write one unit; returns its `PreparedUnit` as JSON."""
    storage = open_storage(spec.root)
    return prepare_unit(spec.unit, spec.config.data, spec.config.seed, storage, spec.folder).model_dump(mode="json")


def run(context: StageContext) -> Outcome:
    data = context.config.data
    listing = list_source(data)
    specs = [
        Spec(unit, context.config, context.storage.root, context.writer.folder) for unit in work_units(listing, data)
    ]
    weights = [_images(spec.unit, data.shard_rows) for spec in specs]
    records = context.map(prepare, specs, weights, unit="images")
    units = [PreparedUnit.model_validate(record) for record in records]
    check_prepared(units, data)
    labels = _labels(units)
    check_labels(data, labels["train"] + labels["validation"], listing.classes)
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
        class_names=list(listing.classes),
        class_counts={split: [labels[split][label] for label in range(data.class_count)] for split in labels},
        quarantined=quarantined,
    )


def _labels(units: list[PreparedUnit]) -> dict[Split, Counter[int]]:
    """The images of each label, by split."""
    found: dict[Split, Counter[int]] = {"train": Counter(), "validation": Counter()}
    for shard in (shard for unit in units for shard in unit.shards):
        found[shard.split].update(shard.labels)
    return found


def _images(unit: Unit, shard_rows: int) -> int:
    """The number of images in a unit; an estimate for a tar, whose number is unknown before it is read."""
    if isinstance(unit, TarUnit):
        return shard_rows
    return len(unit.files) if isinstance(unit, FolderUnit) else unit.stop - unit.start
