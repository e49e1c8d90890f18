"""Fingerprints: what decides a stage's result, as one digest. It names the stage's artifact."""

import hashlib
import json
from typing import Any

from pipeline.config import Config, flattened
from pipeline.workflow.graph import STAGES, Stage


def counted_config(stage: Stage, config: Config) -> dict[str, Any]:
    """The fields that the stage's result depends on, by dotted name.

    Without those that came after a release while they have the value that means "as before" (`config.added_field`):
    an upgrade finds what was made before it.
    """
    fields = flattened(config, without_added=True)
    return {name: value for name, value in sorted(fields.items()) if is_counted(stage, name)}


def is_counted(stage: Stage, name: str) -> bool:
    """Does the stage's result depend on the field of this dotted name?"""
    listed = name in stage.fields or name.partition(".")[0] in stage.fields
    return listed and name not in stage.without


def stage_fingerprints(config: Config) -> dict[str, str | None]:
    """Each stage's fingerprint: sha256 over its name, version, counted config and inputs' fingerprints, in hex.

    None for every stage as long as `data.revision` is not known: what the source holds decides all of them.
    """
    known: dict[str, str | None] = {}
    for stage in STAGES:
        if config.data.revision is None:
            known[stage.name] = None
            continue
        content = {
            "stage": stage.name,
            "version": stage.version,
            "config": counted_config(stage, config),
            "inputs": {name: known[name] for name in stage.inputs},
        }
        known[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return known
