"""Outboxes, and an MLflow that answers or does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking import outbox
from pipeline.tracking.mlflow import MlflowWriter
from tests.support.outboxes import World


@pytest.fixture
def world(tmp_path: Path, mlflow_template: bytes, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("MLFLOW_TRACKING_URI", "DVAE_SITE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mlflow.db").write_bytes(mlflow_template)
    world = World(tmp_path)
    monkeypatch.setattr(outbox, "_milliseconds", world.tick)
    return world


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which MLflow does not answer."""

    def refuse(_: MlflowWriter) -> Any:
        raise ConnectionError("connection refused")

    class Away:
        def __enter__(self) -> None:
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(MlflowWriter, "client", property(refuse))

        def __exit__(self, *_: object) -> None:
            self.patch.undo()

    return Away
