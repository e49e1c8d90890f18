"""What runs have measured, by the fingerprint of their last artifact: one JSON file for a suite at a scale.

A recorded run is not run again, on whatever machine and below whatever root: the file may be kept in git.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from models.intervals import Interval
from pipeline.artifacts import Manifest
from pipeline.errors import ConfigError, StorageError
from pipeline.inference import device_seconds
from pipeline.reports import notes_of
from pipeline.storage import Storage
from pipeline.suites.runs import Run


class Record(BaseModel):
    """One finished run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    seed: int
    metrics: dict[str, float]
    intervals: dict[str, Interval] = {}
    """95%, over the images of this run, of the metrics that have one."""
    notes: dict[str, list[str]] = {}
    """What each of its stages says of how it measured: the reference of its distances, and why one may be too large."""
    curves: dict[str, list[tuple[int, float]]] = {}
    """(step, distance) at each milestone by network, of a run until convergence."""
    stages: dict[str, str]
    """The fingerprint of each of its stages."""
    device_seconds: dict[str, float]
    """Of each stage, over all devices; a stage that several runs share has them in each."""
    mlflow: str = ""
    """The key of the run in MLflow, which its name there ends with; empty where it is not known."""
    created: str = ""
    git_sha: str | None = None


class Results(ABC):
    """Records as one JSON text; where it lies is in the subclasses."""

    @property
    @abstractmethod
    def place(self) -> str:
        """For messages."""

    @abstractmethod
    def _text(self) -> str | None:
        """None while nothing is recorded."""

    @abstractmethod
    def _write(self, text: str) -> None: ...

    def read(self) -> dict[str, Record]:
        """By fingerprint. ConfigError if the text is not one of results."""
        text = self._text()
        if text is None:
            return {}
        try:
            return {key: Record.model_validate(value) for key, value in json.loads(text)["runs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ConfigError(
                f"{self.place} holds no results of a suite ({' '.join(str(error).split())[:100]})",
                "Name another file with --results, or move this one away.",
            ) from error

    def add(self, fingerprint: str, record: Record) -> None:
        """Put one to those that are there by now."""
        runs = {**self.read(), fingerprint: record}  # read anew: another command may have added some
        content = {"runs": {key: value.model_dump(mode="json") for key, value in sorted(runs.items())}}
        self._write(json.dumps(content, indent=1) + "\n")


class AtRoot(Results):
    """`suites/NAME-SCALE.json` at the root of the artifacts."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.path = storage, f"suites/{name}.json"

    @property
    def place(self) -> str:
        return self.storage.uri(self.path)

    def _text(self) -> str | None:
        try:
            return self.storage.read(self.path).decode()
        except FileNotFoundError:
            return None

    def _write(self, text: str) -> None:
        self.storage.write(self.path, text.encode())


class InFile(Results):
    """A file of the user's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def place(self) -> str:
        return str(self.path)

    def _text(self) -> str | None:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StorageError:
        return StorageError(f"{self.path}: {error.strerror or error}", "Choose another file with --results.")

    def _write(self, text: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f".{self.path.name}.new")
            beside.write_text(text)
            beside.replace(self.path)
        except OSError as error:
            raise self._unusable(error) from error


def record_of(run: Run, made: Mapping[str, Manifest], mlflow: str) -> Record:
    """What is kept of a finished run.

    Args:
        made: its artifacts, by stage.
        mlflow: the key of its run there.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for manifest in made.values():
        metrics |= manifest.metrics
        intervals |= manifest.intervals
    last = made[run.until]
    return Record(
        row=run.row.name,
        seed=run.seed,
        metrics=metrics,
        intervals=intervals,
        notes={stage: notes for stage, manifest in made.items() if (notes := notes_of(manifest.details))},
        curves=last.details.get("curves", {}),
        stages={stage: manifest.fingerprint for stage, manifest in made.items()},
        device_seconds={stage: device_seconds(manifest) for stage, manifest in made.items()},
        mlflow=mlflow,
        created=last.created,
        git_sha=last.git_sha,
    )


class Measured(NamedTuple):
    """A run and what is recorded of it."""

    run: Run
    record: Record | None


def measured(runs: list[Run], records: Mapping[str, Record]) -> list[Measured]:
    """Each run with its record. Where the source is not listed here, by row and seed."""
    by_name = {(record.row, record.seed): record for record in records.values()}
    return [
        Measured(run, records.get(run.fingerprint) if run.fingerprint else by_name.get((run.row.name, run.seed)))
        for run in runs
    ]


def hours_text(hours: float) -> str:
    """Hours in three digits or more: 0.62, 12.3, 1,091."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def total_hours(found: list[Measured]) -> float:
    """Device-hours of all recorded runs; a stage that several share counts once."""
    seconds: dict[str, Any] = {}
    for one in found:
        if one.record is not None:
            stages = one.record.stages
            seconds |= {stages[name]: value for name, value in one.record.device_seconds.items() if name in stages}
    return float(sum(seconds.values())) / 3600
