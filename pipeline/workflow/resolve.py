"""Resolves a config's data revision and classes, and checks configs at submission and in the submitted job."""

from pipeline.artifacts import SHORT
from pipeline.config import Config, fields_changed_here
from pipeline.data import check_folders, known_classes, read_index, recorded_revision, revision_of
from pipeline.errors import ConfigError
from pipeline.storage import open_storage
from pipeline.workflow.fingerprints import stage_fingerprints


def resolved(config: Config, fresh: bool) -> Config:
    """The config with `data.revision` and `data.classes` filled in, as far as they are known.

    If `fresh`, a local source is listed; otherwise both come from the recorded index. DataError as `list_source`.
    """
    storage = open_storage(config.root)
    # Even with `fresh`, a remote source is taken from its recorded index: listing a bucket is slow.
    revision = revision_of(config.data, storage, fresh=False) if fresh else recorded_revision(config.data, storage)
    if fresh and (index := read_index(storage, config.data)) is not None and index.classes:
        check_folders(config.data, index.classes)
    known = {"revision": revision, "classes": known_classes(config.data, storage)}
    return config.model_copy(update={"data": config.data.model_copy(update=known)})


def check_source(config: Config, name: str) -> None:
    """ConfigError if the revision of the source of the preset `name` is unknown."""
    if config.data.revision is not None:
        return
    if config.data.uri is None:
        raise ConfigError(f"{name} has no data source", "Set one with --set data.uri=file:///PATH or s3://...")
    raise ConfigError(
        f"{config.data.uri} has not been listed yet",
        f"Run `python -m pipeline data index {name}` (with the same --set and --root).",
    )


def check_expected(config: Config, stage: str, expected: str | None) -> None:
    """ConfigError if this machine computes another fingerprint than the one that submitted the job."""
    fingerprint = stage_fingerprints(config)[stage] or "unresolved"
    if expected is not None and not fingerprint.startswith(expected):
        changed = fields_changed_here(config)
        raise ConfigError(
            f"{stage} is {fingerprint[:SHORT]} here, not {expected[:SHORT]}"
            + (f": the site file here changes {', '.join(changed)}" if changed else ""),
            "Use the same site file (DVAE_SITE) on both sides." if changed else "Install one version on both sides.",
        )
