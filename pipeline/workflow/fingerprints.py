"""Fingerprints: a digest of everything that determines a stage's result. It names the stage's artifact."""

import hashlib
import json
from typing import Any

from pipeline.config import Config, WeightFile, flattened
from pipeline.weights import weights_used
from pipeline.workflow.graph import ALL_STAGES, SECTIONS, Stage, section_of

_DIGITS = 64  # of a whole fingerprint


def counted_config(stage: Stage, config: Config) -> dict[str, Any]:
    """The fields that the stage's result depends on, by dotted name. Of a weight file only its hash counts.

    Fields added after a release are omitted while they have the value of the old behaviour (`config.added_field`), so
    that an upgrade still finds earlier artifacts.
    """
    fields = _with_seeds_in_effect(config, flattened(config, without_added=True))
    return {name: _content(value) for name, value in sorted(fields.items()) if is_counted(stage, name)}


def _with_seeds_in_effect(config: Config, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with the seed that samples are drawn with, and trainers' own seeds where they are not `seed`.

    So a seed that is written down counts as the same seed that is taken by default.
    """
    as_default = {f"{section}.seed" for section in SECTIONS.values() if fields.get(f"{section}.seed") == config.seed}
    return {name: value for name, value in fields.items() if name not in as_default} | {
        "sample.seed": config.sample_seed
    }


def uncounted_config(stage: Stage, config: Config) -> dict[str, Any]:
    """The other fields that the stage reads, by dotted name, and whole weight files: what a repair needs besides."""
    fields = flattened(config, without_added=True)
    read = {name: value for name, value in sorted(fields.items()) if is_read(stage, name)}
    return {name: value for name, value in read.items() if not is_counted(stage, name) or _content(value) != value}


def is_counted(stage: Stage, name: str) -> bool:
    """Whether the stage's result depends on the field of this dotted name."""
    listed = name in stage.fields or name.partition(".")[0] in stage.fields
    return listed and name not in (*stage.without, *stage.uncounted)


def is_read(stage: Stage, name: str) -> bool:
    """Whether the stage reads the field of this dotted name, counted or not."""
    return name in stage.uncounted or is_counted(stage, name)


def _content(value: Any) -> Any:
    """The value; of a weight file its hash alone."""
    if isinstance(value, dict) and value.keys() == WeightFile.model_fields.keys():
        return {"sha256": value["sha256"]}
    return value


def stage_fingerprints(config: Config) -> dict[str, str | None]:
    """Each stage's fingerprint: sha256 over its name, version, counted config and inputs' fingerprints, in hex.

    Of the stages that exist with this config.
    None for every stage while `data.revision` is unknown, since the content of the source determines all of them, and
    for a stage and those after it while a weight file of it is, or the artifact that it starts from. A tokenizer or a
    generator that was imported has the fingerprint of its import (`imported.py`, `imported_sit.py`).
    """
    known: dict[str, str | None] = {}
    imported = imported_stages(config)
    for stage in ALL_STAGES:
        if not stage.exists(config):
            continue
        if stage.name in imported:
            known[stage.name] = imported[stage.name]
            continue
        if not _is_determined(stage, config, known):
            known[stage.name] = None
            continue
        content = {
            "stage": stage.name,
            "version": stage.version,
            "config": counted_config(stage, config),
            "inputs": {name: known[name] for name in stage.inputs_with(config)},
        }
        known[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return known


def imported_stages(config: Config) -> dict[str, str]:
    """The fingerprints of trainers' artifacts that are imported, by stage."""
    given = {"train-tokenizer": config.tokenizer.imported, "train-sit": config.sit.imported}
    return {stage: fingerprint for stage, fingerprint in given.items() if fingerprint is not None}


def _is_determined(stage: Stage, config: Config, known: dict[str, str | None]) -> bool:
    """Whether the source, the stage's inputs, its weight files and the artifact that it starts from are known."""
    if config.data.revision is None or None in (known[name] for name in stage.inputs_with(config)):
        return False
    unknown = [f"{use.section}.{use.field}" for use in weights_used(config) if use.file.sha256 is None]
    for trainer, section in SECTIONS.items():
        start = section_of(config, trainer).start_from
        if start is not None and len(start) < _DIGITS:
            unknown.append(f"{section}.start_from")
    return not any(is_counted(stage, name) for name in unknown)
