"""prepare: the source's images as Parquet shards, training and validation split, every image proven readable.

The work is cut into units by the listing; a unit is a Ray task and has its own record, so that an attempt goes on
where the last one ended. Reading, decoding and writing are those of `pipeline.data`.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.artifacts import FileRecord, Outcome
from pipeline.config import Config
from pipeline.context import StageContext
from pipeline.data.listing import Listing, list_source
from pipeline.data.sources import Unit, class_names, work_units
from pipeline.data.store import prepare_unit
from pipeline.errors import DataError
from pipeline.storage import open_storage


@dataclass(frozen=True)
class Spec:
    """One task: a unit, and where its shards go."""

    unit: Unit
    config: Config
    root: str
    folder: str


def prepare(spec: Spec) -> dict[str, Any]:
    """Read, check and write one unit. The shards' records, as JSON."""
    storage = open_storage(spec.root)
    records = prepare_unit(spec.unit, spec.config.data, spec.config.seed, storage, spec.folder)
    return {"shards": [record.to_json() for record in records]}


def run(context: StageContext) -> Outcome:
    config = context.config
    listing = list_source(config.data)
    if listing.digest != config.data.revision:
        raise DataError(
            f"{config.data.uri} has changed: its listing is {listing.digest[:12]}, not {str(config.data.revision)[:12]}",
            "Run `pipeline data index` and then this command again; leave data.revision out of the preset.",
        )
    units = work_units(listing, config.data)
    specs = [Spec(unit, config, context.storage.root, context.writer.folder) for unit in units]
    records = context.map(prepare, specs, weights=[unit.rows for unit in units], unit="images")
    shards = [shard for record in records for shard in record["shards"]]
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for shard in shards:
        if shard["rows"]:
            context.writer.add_stored(shard["path"], FileRecord(bytes=shard["bytes"], sha256=shard["sha256"]))
            splits[shard["split"]].append({"path": shard["path"], "rows": shard["rows"]})
    counts = {name: sum(shard["rows"] for shard in split) for name, split in splits.items()}
    quarantined = [entry for shard in shards for entry in shard["quarantined"]]
    _check(config, counts, quarantined, listing)
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
        classes=config.data.classes,
        class_names=class_names(listing, config.data),
        quarantined=quarantined,
    )


def _check(config: Config, counts: dict[str, int], quarantined: list[dict[str, str]], listing: Listing) -> None:
    total = sum(counts.values()) + len(quarantined)
    if len(quarantined) > config.data.quarantine_budget * total:
        first = quarantined[0]
        raise DataError(
            f"{len(quarantined)} of {total} images are unreadable, {first['key']} for one: {first['reason']}",
            "Mend or remove them, or raise data.quarantine_budget.",
        )
    for split, rows in counts.items():
        if rows == 0:
            raise DataError(
                f"the {split} split of {config.data.uri or config.data.format} is empty",
                "Give more images, or set data.validation_share or data.validation_uri.",
            )
