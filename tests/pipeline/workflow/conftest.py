"""The fixture `world` of the tests of the driver."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline import cluster, tracking
from pipeline.workflow import runner, status
from pipeline.workflow.graph import Stage
from tests.pipeline.workflow.world import NoCourier, World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    for name in ("DVAE_SITE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Stage, "body", property(world.body))
    monkeypatch.setattr(cluster, "connect", world.connect)
    monkeypatch.setattr(cluster, "disconnect", lambda: None)
    monkeypatch.setattr(cluster, "start_coordinator", lambda: None)
    monkeypatch.setattr(cluster, "await_pool", lambda *_: None)
    monkeypatch.setattr(cluster, "set_environment", lambda: None)
    monkeypatch.setattr(cluster, "diverted_output", lambda debug: nullcontext())
    monkeypatch.setattr(tracking, "Courier", NoCourier)
    monkeypatch.setattr(runner, "_warm_up", lambda stages: None)
    monkeypatch.setattr(status, "has_version", lambda uri, name, fingerprint: fingerprint in world.registered)
    return world
