"""The context passed to a stage's body: config, inputs, places to write, and a way to run tasks on Ray."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import cluster
from pipeline.artifacts import ArtifactWriter, FileRecord, Lease, Manifest, local_copies
from pipeline.config import Config
from pipeline.storage import Storage
from pipeline.tracking import Outbox


@dataclass(frozen=True)
class Work:
    """What all tasks of a stage have in common; it travels with each of them."""

    root: str
    inputs: dict[str, Manifest]
    fingerprint: str
    folder: str  # for what tasks leave for each other, at the root
    config: Config


@dataclass
class StageContext:
    """One attempt at one stage. `work` is kept between attempts and deleted on commit; `scratch` is per attempt."""

    config: Config
    stage: str
    fingerprint: str
    storage: Storage
    inputs: dict[str, Manifest]
    writer: ArtifactWriter
    work: str  # folder at the root
    scratch: Path  # folder on this machine
    lease: Lease
    outbox: Outbox
    progress: Callable[..., None]  # progress(done, total, unit=..., **values)
    say: Callable[[str], None]  # a line for the person who watches

    def common(self, folder: str) -> Work:
        """For tasks that leave something in this folder of the work folder."""
        return Work(self.storage.root, dict(self.inputs), self.fingerprint, f"{self.work}/{folder}", self.config)

    def map(
        self,
        function: Callable[[Any], dict[str, Any]],
        specs: Sequence[Any],
        weights: Sequence[int],
        unit: str,
        gpu: bool = False,
    ) -> list[dict[str, Any]]:
        """Run `function(spec)` as Ray tasks; returns their records in the order of the specs.

        A record (any JSON) is stored when its task is done, so that a later attempt runs only the missing tasks.
        `weights` are the units of progress of each spec.
        """
        folder = f"{self.work}/records-{function.__name__}"
        records: dict[int, dict[str, Any]] = {}
        for entry in self.storage.list(folder):
            index = int(entry.path.rpartition("/")[2].removesuffix(".json"))
            records[index] = json.loads(self.storage.read(entry.path))
        missing = [index for index in range(len(specs)) if index not in records]
        total = sum(weights)
        done = total - sum(weights[index] for index in missing)
        self.progress(done, total, unit=unit)
        chosen = [specs[index] for index in missing]
        for position, record in cluster.run_tasks(function, chosen, self.config.cluster, self.stage, gpu):
            index = missing[position]
            records[index] = record
            self.storage.write(f"{folder}/{index:06d}.json", json.dumps(record).encode())
            done += weights[index]
            self.progress(done, total, unit=unit)
        return [records[index] for index in range(len(specs))]

    def input_files(self, stage: str, names: Iterable[str]) -> dict[str, Path]:
        """Local paths of an input's files, with verified hashes."""
        return local_copies(self.storage, self.inputs[stage], names, self.scratch)

    def figure(self, draw: Callable[[Any], dict[str, Any]], spec: Any, name: str, gpu: bool = False) -> None:
        """Run the task `draw(spec)`, which writes a figure to this artifact as `name`, and attach it to the MLflow run.

        It is a task since the driver does not import matplotlib. `draw` returns the file's record as JSON.
        """
        (record,) = self.map(draw, [spec], [1], unit="figure", gpu=gpu)
        self.writer.add_stored(name, FileRecord.model_validate(record))
        self.show(name)

    def show(self, name: str, folder: str = "figures") -> None:
        """Attach a file of this artifact to the MLflow run."""
        self.outbox.file(f"{self.writer.folder}/{name}", folder)
