"""Resolves a config's data revision and classes, and checks configs at submission and in the submitted job."""

import time

from rich.markup import escape

from pipeline.artifacts import SHORT
from pipeline.config import Config, fields_changed_here
from pipeline.console import Display, duration
from pipeline.data import (
    Listener,
    check_folders,
    index_source,
    known_classes,
    read_index,
    recorded_revision,
    revision_of,
)
from pipeline.errors import ConfigError
from pipeline.storage import open_storage
from pipeline.weights import check_known, resolve_weights
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.starts import with_whole_starts


class _Shown:
    """The listing and reading of a source, shown like a stage, from its first sign of life on."""

    def __init__(self, display: Display) -> None:
        self.display, self.begun = display, 0.0
        self.listener = Listener(lambda text: display.say(escape(text)), self._progress)

    def begin(self) -> None:
        if not self.begun:
            self.display.begin("source")
            self.begun = time.monotonic()

    def _progress(self, done: int, total: int, unit: str) -> None:
        self.begin()
        self.display.progress(done, total, unit)

    def end(self, text: str) -> None:
        if self.begun:
            self.display.end("source", "[green]✓[/]", f"{duration(time.monotonic() - self.begun):<10} {text}")


def resolved(config: Config, fresh: bool, display: Display | None = None) -> Config:
    """The config with named weights, `data.revision` and `data.classes` filled in, as far as they are known, and the
    whole fingerprints of artifacts that it starts from (errors as `with_whole_starts`).

    If `fresh`, weights must be known (ConfigError); a local source is listed, and a remote one without a recorded
    index, which the display shows. Otherwise both come from the recorded index. DataError as `list_source`.
    """
    config = with_whole_starts(resolve_weights(config))
    storage, data = open_storage(config.root), config.data
    if fresh:
        check_known(config)
    if not fresh:
        revision = recorded_revision(data, storage)
    elif display is None:
        revision = revision_of(data, storage)
    else:
        shown = _Shown(display)
        revision = revision_of(data, storage, shown.listener)
        index = read_index(storage, data)
        shown.end(index.text if index else "")
    if fresh and (index := read_index(storage, data)) is not None and index.classes:
        check_folders(data, index.classes)
    known = {"revision": revision, "classes": known_classes(data, storage)}
    return config.model_copy(update={"data": data.model_copy(update=known)})


def index_now(config: Config, display: Display) -> None:
    """List the source, whatever is recorded, and record its index; the display shows it. Errors as `index_source`."""
    shown = _Shown(display)
    shown.begin()
    index = index_source(config.data, open_storage(config.root), shown.listener)
    shown.end(index.text)
    for remark in index.remarks:
        shown.listener.say(remark)


def check_inputs(config: Config, name: str) -> None:
    """ConfigError if weights, or the revision of the source, of the preset `name` are unknown."""
    check_known(config)
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
