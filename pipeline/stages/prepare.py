"""prepare: the source's images as Parquet shards of a training and a validation split; every image is readable.

The listing is split into units; a unit is a Ray task with its own record, so that an interrupted attempt resumes.
Before that, tasks index the tars, by whose members they are split. Reading, decoding and writing are in
`pipeline.data`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import FileRecord, Outcome
from pipeline.config import Config
from pipeline.data import (
    Exceptions,
    FolderUnit,
    Listener,
    Listing,
    PreparedUnit,
    Split,
    TarIndex,
    TarUnit,
    Unit,
    broken_links,
    check_labels,
    check_prepared,
    checked_listing,
    class_names,
    exceptions_of,
    index_tar,
    listed_tars,
    prepare_unit,
    work_units,
)
from pipeline.errors import DataError
from pipeline.storage import open_storage
from pipeline.workflow import StageContext

_INDEX_BYTES = 1 << 30  # of tars that one task indexes: many small ones, or one large one


@dataclass(frozen=True)
class TarSpec:
    """One task of the index: some tars, each by root and path."""

    tars: tuple[tuple[str, str], ...]
    classes: int


@dataclass(frozen=True)
class Spec:
    """One task: a unit, and the folder for its shards."""

    unit: Unit
    config: Config
    root: str
    folder: str
    training: frozenset[str]  # keys that train whatever the hash says


def index(spec: TarSpec) -> dict[str, Any]:
    """Index some tars; returns each `TarIndex` as JSON."""
    return {"tars": [index_tar(*tar, spec.classes).model_dump(mode="json") for tar in spec.tars]}


def prepare(spec: Spec) -> dict[str, Any]:
    """Read, check and write one unit; returns its `PreparedUnit` as JSON."""
    storage, config = open_storage(spec.root), spec.config
    made = prepare_unit(spec.unit, config.data, config.seed, storage, spec.folder, spec.training)
    return made.model_dump(mode="json")


def run(context: StageContext) -> Outcome:
    data = context.config.data
    listing, _ = checked_listing(data, context.storage, Listener(context.say, context.progress))
    tars = _indexed_tars(context, listing)
    work = work_units(listing, data, tars)
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
    weights = [_images(spec.unit) for spec in specs]
    records = context.map(prepare, specs, weights, unit="images")
    units = [PreparedUnit.model_validate(record) for record in records]
    units.append(broken_links(listing, len(units)))
    check_prepared(units, data, names, splits_given=listing.validation_root is not None)
    labels = _labels(units)
    check_labels(data, labels["train"] + labels["validation"], names)
    for remark in _about_unreadable(exceptions, labels):
        context.say(remark)
        remarks.append(remark)
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
        class_counts={split: [labels[split][label] for label in range(data.class_count)] for split in labels},
        remarks=remarks,
        skipped=dict(sum((Counter(tar.skipped) for tar in tars), Counter(listing.skipped)).most_common()),
        quarantined=quarantined,
    )


def _indexed_tars(context: StageContext, listing: Listing) -> list[TarIndex]:
    """The index of each tar of the listing, made by tasks; none for other formats."""
    specs, size = list[TarSpec](), 0
    for root, entry in listed_tars(listing):
        if specs and size + entry.bytes <= _INDEX_BYTES:
            specs[-1] = TarSpec((*specs[-1].tars, (root, entry.path)), specs[-1].classes)
            size += entry.bytes
        else:
            specs.append(TarSpec(((root, entry.path),), context.config.data.class_count))
            size = entry.bytes
    records = context.map(index, specs, [len(spec.tars) for spec in specs], unit="tars") if specs else []
    return [TarIndex.model_validate(tar) for record in records for tar in record["tars"]]


def _about(exceptions: Exceptions) -> Iterator[str]:
    forced = sum(map(len, exceptions.training.values()))
    if forced:
        yield f"{forced} classes train on one image that the share would hold out, as they had no other"
    if exceptions.untrained:
        yield f"{exceptions.untrained} classes have a single image, which validates: they are not trained on"


def _about_unreadable(exceptions: Exceptions, labels: dict[Split, Counter[int]]) -> Iterator[str]:
    """What unreadable images add to `_about`."""
    more = len(labels["validation"].keys() - labels["train"].keys()) - exceptions.untrained
    if more > 0:
        yield f"{more} classes have a single readable image, which validates: they are not trained on"


def _labels(units: list[PreparedUnit]) -> dict[Split, Counter[int]]:
    """The images of each label, by split."""
    found: dict[Split, Counter[int]] = {"train": Counter(), "validation": Counter()}
    for shard in (shard for unit in units for shard in unit.shards):
        found[shard.split].update(shard.labels)
    return found


def _images(unit: Unit) -> int:
    if isinstance(unit, TarUnit):
        return max(1, unit.rows)
    return max(1, len(unit.files)) if isinstance(unit, FolderUnit) else unit.stop - unit.start
