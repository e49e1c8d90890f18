"""From a loaded config to one whose source is known, and the checks that both sides of a submission make."""

from pipeline.artifacts import SHORT
from pipeline.config import Config, fields_changed_here
from pipeline.data import known_classes, recorded_revision, revision_of
from pipeline.errors import ConfigError
from pipeline.storage import open_storage
from pipeline.workflow.fingerprints import stage_fingerprints


def resolved(config: Config, fresh: bool) -> Config:
    """The config with `data.revision` and `data.classes` known, if they can be.

    A local source is listed when `fresh`, else both are as recorded.
    """
    storage = open_storage(config.root)
    # Even then a recorded index of a remote source will do: listing a bucket takes its time.
    revision = revision_of(config.data, storage, fresh=False) if fresh else recorded_revision(config.data, storage)
    known = {"revision": revision, "classes": known_classes(config.data, storage)}
    return config.model_copy(update={"data": config.data.model_copy(update=known)})


def check_source(config: Config, name: str) -> None:
    """ConfigError when it is not known what the source of the preset `name` holds."""
    if config.data.revision is not None:
        return
    if config.data.uri is None:
        raise ConfigError(f"{name} names no source", "Give one with --set data.uri=file:///PATH or s3://...")
    raise ConfigError(
        f"{config.data.uri} has not been listed yet",
        f"Run `python -m pipeline data index {name}` (with the same --set and --root).",
    )


def check_expected(config: Config, stage: str, expected: str | None) -> None:
    """ConfigError when this side resolves a config to another fingerprint than the side that sent it."""
    fingerprint = stage_fingerprints(config)[stage] or "unresolved"
    if expected is not None and not fingerprint.startswith(expected):
        changed = fields_changed_here(config)
        raise ConfigError(
            f"{stage} is {fingerprint[:SHORT]} here, not {expected[:SHORT]}"
            + (f": this side's site file has other {', '.join(changed)}" if changed else ""),
            "Give both sides the same site file (DVAE_SITE)." if changed else "Bring both sides to the same version.",
        )
