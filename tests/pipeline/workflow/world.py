"""One root for the tests of the driver, with fakes for the stages, Ray, MLflow and its registry."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from pipeline.artifacts.manifest import Manifest, read_manifest
from pipeline.artifacts.writer import Outcome
from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.console import Display
from pipeline.storage.uri import open_storage
from pipeline.tracking.outbox import OUTBOX
from pipeline.workflow.context import StageContext
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import NAMES, Stage
from pipeline.workflow.resolve import resolved
from pipeline.workflow.runner import Runner
from pipeline.workflow.status import survey


class World:
    """One root, with fakes for the stages, Ray, MLflow and its registry; it remembers what was made."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "runs"
        self.made: list[str] = []
        self.connected = 0
        self.registered: set[str] = set()
        self.content = {name: f"made by {name}" for name in NAMES}
        self.before: dict[str, Callable[[StageContext], None]] = {}  # what else a stage does, first
        self.on_connect: Callable[[], None] = lambda: None
        self.said = io.StringIO()
        self.prepared: dict[str, Any] = {
            "splits": {"train": [{"path": "t", "rows": 90}], "validation": [{"path": "v", "rows": 10}]},
            "class_counts": {"train": [9] * 10, "validation": [1] * 10},
        }

    def body(self, stage: Stage) -> Callable[[StageContext], Outcome]:
        def run(context: StageContext) -> Outcome:
            assert set(context.inputs) == set(stage.inputs_with(context.config))
            self.before.get(stage.name, lambda _: None)(context)
            self.made.append(stage.name)
            images = f" from {context.config.data.revision}" if stage.name == "prepare" else ""
            context.writer.add_bytes(f"{self.content[stage.name]}{images}".encode(), "file")
            if stage.name == "register":
                self.registered.add(context.fingerprint)
            details = self._details(stage.name, context.config)
            return context.writer.outcome(1, {"sit/loss": 1.0, "samples/count": 3.0}, **details)

        return run

    def _details(self, stage: str, config: Config) -> dict[str, Any]:
        own = config.tokenizer
        mask = {"mask": own.mask, "keep": own.keep}
        said = {
            "prepare": self.prepared,
            "train-tokenizer": {"kind": own.kind, "network": config.tokenizer_network, "filter": mask},
            "train-sit": {"network": config.sit_network, "level": config.sit.level},
        }
        return said.get(stage, {})

    def connect(self, *_: object) -> None:
        self.connected += 1
        self.on_connect()

    def config(self, *sets: str, root: Path | None = None) -> Config:
        return resolved(load_config("quickstart", list(sets), str(root or self.root)), fresh=True)

    def driver(self, *sets: str, root: Path | None = None) -> Runner:
        return Runner(self.config(*sets, root=root), Display(Console(file=self.said, width=400)), "quickstart")

    def run(self, *sets: str, until: str | None = None, root: Path | None = None) -> list[str]:
        """Run; the names of the stages that were made."""
        self.made = []
        self.driver(*sets, root=root).run(until)
        return self.made

    def manifest(self, stage: str, *sets: str) -> Manifest | None:
        fingerprint = stage_fingerprints(self.config(*sets))[stage]
        assert fingerprint is not None
        return read_manifest(open_storage(str(self.root)), stage, fingerprint)

    def statuses(self, *sets: str) -> dict[str, str]:
        return {node.stage.name: node.status for node in survey(self.config(*sets))}

    def events(self, key: str) -> list[dict[str, Any]]:
        """What waits for MLflow, of the runs whose key ends so."""
        files = sorted((self.root / OUTBOX).rglob("*.jsonl"), key=lambda path: path.name)
        lines = [line for path in files if path.parent.name.endswith(key) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]


class NoCourier:
    """Delivers nothing."""

    def __init__(self, *_: object) -> None: ...

    def close(self, timeout: float) -> str | None:
        return None


def folder_of_images(folder: Path, count: int = 3, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for label in classes:
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / label / f"{i}.png")
    return folder
