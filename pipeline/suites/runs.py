"""From a suite to its runs: a config for each row and seed at a scale, and what they have in common.

Seeds are those of both trainings and of the samples; which images are held out is the same in all runs.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.config import Config, DataConfig, flattened, load_config
from pipeline.console import Display
from pipeline.errors import ConfigError
from pipeline.suites.measures import check_columns
from pipeline.suites.schema import Fields, Row, Suite, nearest
from pipeline.weights import check_known, weights_used
from pipeline.workflow import resolved, stage_fingerprints, stages_until

_UNLISTED = "0" * 64  # stands for the revision of a source that is not listed, so that what is shared can be told


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: Row
    seed: int
    preset: str
    sets: tuple[str, ...]
    config: Config
    until: str

    @cached_property
    def prints(self) -> dict[str, str | None]:
        """Fingerprints, as far as they are known."""
        return stage_fingerprints(self.config)

    @property
    def fingerprint(self) -> str | None:
        """Of its last artifact, by which its results are recorded."""
        return self.prints[self.until]

    @cached_property
    def identities(self) -> dict[str, str]:
        """What tells each of its stages from those of other runs: the fingerprint, or one with stand-ins."""
        known = stage_fingerprints(_stood_in(self.config))
        names = [stage.name for stage in stages_until(self.until) if stage.exists(self.config)]
        return {name: self.prints[name] or known[name] or name for name in names}

    @property
    def label(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    def command(self, root: str | None) -> list[str]:
        """`run` and its arguments, for `python -m pipeline` or `python -m deploy submit`: they make and repeat it."""
        sets = [word for one in self.sets for word in ("--set", one)]
        return ["run", self.preset, "--until", self.until, *sets, *(["--root", root] if root else [])]

    def command_line(self, root: str | None) -> str:
        return shlex.join(["python", "-m", "pipeline", *self.command(root)])


@dataclass(frozen=True)
class Asked:
    """What a command line asks of a suite."""

    scale: str = ""
    seeds: int | None = None
    rows: Sequence[str] = ()
    sets: Sequence[str] = ()
    root: str | None = None


def scale_of(suite: Suite, name: str | None) -> str:
    """The scale of this name, by default the first; empty for a suite without scales. ConfigError if unknown."""
    if name is None:
        return suite.scale_names[0]
    if name not in suite.scales:
        known = list(suite.scales)
        raise ConfigError(
            f"suite {suite.name} has no scale '{name}'",
            f"Use one of {', '.join(known)}." if known else "Leave out --scale: its rows are as they are.",
        )
    return name


def chosen_rows(suite: Suite, asked: Asked) -> list[Row]:
    """The rows asked for, by default all, in the order of the suite. ConfigError for an unknown name."""
    names = [row.name for row in suite.rows]
    for name in asked.rows:
        if name not in names:
            raise ConfigError(f"suite {suite.name} has no row '{name}'", f"As to its rows, {nearest(name, names)}")
    return [row for row in suite.rows if not asked.rows or row.name in asked.rows]


def preset_of(suite: Suite, row: Row, scale: str) -> str | None:
    """The row's preset at a scale; None if it is not run there."""
    preset = row.preset.get(scale) if isinstance(row.preset, dict) else row.preset
    if preset is not None and preset.endswith((".yaml", ".yml")):
        return str(suite.folder / preset)
    return preset


def runs_of(suite: Suite, asked: Asked, fresh: bool, display: Display | None = None) -> list[Run]:
    """The runs, seed by seed, so that a table of one seed is whole before the next one begins.

    `fresh` as `resolved`. ConfigError if a config is invalid, if rows differ in what `equal` says they share, or if no
    row measures a column's metric; where only some rows are asked for, it may be that of another one.
    """
    seeds = asked.seeds or suite.seeds
    rows = [(row, preset) for row in chosen_rows(suite, asked) if (preset := preset_of(suite, row, asked.scale))]
    resolver = _Resolver(fresh, display)
    runs = [_run(suite, row, preset, seed, asked, resolver) for seed in range(seeds) for row, preset in rows]
    for group in {run.row.group for run in runs}:
        check_equal(suite, [run for run in runs if run.row.group == group and run.seed == 0])
    if runs and not asked.rows:
        check_columns(suite, asked.scale, [run.config for run in runs if run.seed == 0])
    return runs


@dataclass
class _Resolver:
    """Resolves the configs of a suite as `resolved`, with one listing of each source."""

    fresh: bool
    display: Display | None
    listed: list[DataConfig] = field(default_factory=list)

    def resolve(self, config: Config) -> Config:
        found = resolved(config, self.fresh and config.data not in self.listed, self.display)
        if self.fresh:
            check_known(found)
            self.listed.append(config.data)
        return found


def _run(suite: Suite, row: Row, preset: str, seed: int, asked: Asked, resolver: _Resolver) -> Run:
    scale = suite.scales[asked.scale].set if asked.scale else {}
    sets = [*_overrides(scale), *_overrides(row.set), *_overrides(row.at.get(asked.scale, {})), *asked.sets]
    try:
        sets += _seeds(load_config(preset, sets, asked.root), seed)
        config = resolver.resolve(load_config(preset, sets, asked.root))
    except ConfigError as error:
        raise ConfigError(f"suite {suite.name}, row {row.name}: {error.what}", error.hint) from error
    return Run(row, seed, preset, tuple(sets), config, suite.until)


def _seeds(config: Config, seed: int) -> Iterator[str]:
    """The overrides of a seed; what is imported has none."""
    if config.tokenizer.imported is None:
        yield f"tokenizer.seed={seed}"
    if config.sit.imported is None:
        yield f"sit.seed={seed}"
    yield f"sample.seed={seed}"


def _overrides(fields: Fields) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in fields.items()]


def check_equal(suite: Suite, runs: Sequence[Run]) -> None:
    """ConfigError, with both values, unless all rows have the suite's `equal` in common."""
    fields = list(flattened(runs[0].config)) if runs else []
    known = [*dict.fromkeys(name.partition(".")[0] for name in fields), *fields]
    for name in suite.equal if runs else ():
        if name not in known:
            raise ConfigError(
                f"suite {suite.name}: equal: unknown field '{name}'", f"As to fields, {nearest(name, known)}"
            )
    for run in runs[1:]:
        here, first = flattened(run.config), flattened(runs[0].config)
        for name in sorted(here):
            shared = name in suite.equal or name.partition(".")[0] in suite.equal
            if shared and here[name] != first[name]:
                raise ConfigError(
                    f"suite {suite.name}: rows {runs[0].row.name} and {run.row.name} differ in {name} "
                    f"({first[name]} and {here[name]})",
                    "Set it for all rows, or leave it out of `equal`.",
                )


def _stood_in(config: Config) -> Config:
    """The config with stand-ins for an unlisted source and for weights that are not here."""
    changed: dict[str, Any] = {}
    for use in weights_used(config):
        if use.file.sha256 is None:
            own = changed.get(use.section, getattr(config, use.section))
            digest = hashlib.sha256((use.file.name or "").encode()).hexdigest()
            changed[use.section] = own.model_copy(update={use.field: use.file.model_copy(update={"sha256": digest})})
    data = config.data.model_copy(update={"revision": config.data.revision or _UNLISTED})
    return config.model_copy(update={**changed, "data": data})
