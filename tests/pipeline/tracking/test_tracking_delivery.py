"""Deliverers that die, several at once, and a real server that comes and goes: everything arrives once."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.tracking.courier import Courier, undelivered
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.outbox import OUTBOX, metric_event
from tests.support import PROJECT
from tests.support.fault_proxy import fault_proxy
from tests.support.mlflow_server import MlflowServer, running_mlflow
from tests.support.outboxes import KEY, World

DELIVER = """
import os, signal, sys
from pipeline.config import load_config
from pipeline.storage import open_storage
from pipeline import tracking

root, uri, fatal, count = sys.argv[1:]
config = load_config("quickstart", [f"tracking.uri={uri}"], root)
storage, post = open_storage(root), tracking.MlflowWriter(uri, config)
left = int(count)


def dying(function):
    def counted(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return counted


if fatal == "delete":
    storage.delete = dying(storage.delete)
elif fatal == "log_batch":
    post.client.log_batch = dying(post.client.log_batch)
else:
    import pathlib, time

    _ = post.client  # imports take seconds: all begin at once
    pathlib.Path(fatal, str(os.getpid())).touch()
    while len(list(pathlib.Path(fatal).iterdir())) < left:
        time.sleep(0.01)
print(tracking.deliver(storage, post))
"""


def deliverer(world: World, fatal: str | Path, count: int) -> "subprocess.Popen[str]":
    """A process that delivers; in front of its `count`-th call of `fatal` it kills itself."""
    command = [sys.executable, "-c", DELIVER, world.config.root, world.uri, str(fatal), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)


def wide(step: int) -> dict[str, float]:
    return {f"sit/loss_{i}": float(step) for i in range(7)}


@pytest.mark.slow
@pytest.mark.parametrize(("fatal", "count"), [("delete", 4), ("log_batch", 3)])
def test_a_deliverer_that_is_killed(world: World, fatal: str, count: int) -> None:
    """Between MLflow's answer and the removal; and between two parts of a file that MLflow does not take at once."""
    outbox = world.outbox()
    outbox.open("run", {})
    for begin in range(1, 1001, 200):
        outbox.post(*(metric_event(wide(step), step) for step in range(begin, begin + 200)))
    outbox.close("FINISHED")
    killed = deliverer(world, fatal, count)
    assert killed.wait(120) == -9
    (run,) = world.runs()
    assert run.info.status == "RUNNING"
    world.deliver()
    (run,) = world.runs()
    assert run.info.status == "FINISHED"
    for name in wide(0):
        assert [(step, value) for step, value, _ in world.history(run, name)] == [(i, i) for i in range(1, 1001)]
    assert undelivered(world.storage) == []


@pytest.mark.slow
def test_drivers_that_deliver_from_one_bucket(tmp_path: Path, mlflow_template: bytes, s3_root: str) -> None:
    (tmp_path / "mlflow.db").write_bytes(mlflow_template)
    (tmp_path / "ready").mkdir()
    world = World(tmp_path, root=s3_root)
    for key in ("one", "two"):
        world.outbox(key).open(key, {})
    for step in range(1, 41):
        for key in ("one", "two"):
            world.outbox(key).metrics({"sit/loss": 1.0}, step)
    processes = [deliverer(world, tmp_path / "ready", 3) for _ in range(3)]
    counts = [int(process.communicate(timeout=200)[0]) for process in processes]
    assert sum(counts) == 82
    assert sorted(run.info.run_name for run in world.runs()) == ["one", "two"]
    for run in world.runs():
        assert [step for step, *_ in world.history(run, "sit/loss")] == list(range(1, 41))
    assert list(world.storage.list(".work")) == []


# --- a real server ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: Callable[[], str]) -> Iterator[MlflowServer]:
    """MLflow on PostgreSQL."""
    with running_mlflow(tmp_path_factory.mktemp("server"), database()) as server:
        yield server


@pytest.fixture
def served(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The server up, and an experiment of this test's own."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    if not server.is_up():
        server.stop()
        server.start()
    world = World(tmp_path, server.uri)
    named = world.config.tracking.model_copy(update={"experiment": tmp_path.name})
    world.config = world.config.model_copy(update={"tracking": named})
    return world


@pytest.mark.slow
def test_hours_without_a_server(served: World, server: MlflowServer) -> None:
    """At the start, in the middle and at the end: an hour is 1800 posts, one every two seconds."""
    outbox, told = served.outbox(), list[tuple[int, float, int]]()

    def train(steps: range) -> None:
        for first in steps[::2]:
            events = [metric_event({"sit/loss": 1 / step, "sit/mfu": 0.5}, step) for step in (first, first + 1)]
            outbox.post(*events)
            told.extend((event["step"], event["values"]["sit/loss"], event["time"]) for event in events)

    def away() -> None:
        with pytest.raises(TrackingError, match=f"nothing listens at {server.uri}"):
            served.deliver()

    server.kill()
    outbox.open("run", {})
    train(range(1, 3601))
    away()
    server.start()
    assert served.deliver() == 1801
    train(range(3601, 3701))
    assert served.deliver() == 50
    server.kill()
    train(range(3701, 7301))
    away()
    server.start()
    assert served.deliver() == 1800
    server.kill()
    train(range(7301, 7401))
    outbox.close("FINISHED")
    away()
    server.start()
    assert served.deliver() == 51
    (run,) = served.runs()
    assert run.info.status == "FINISHED"
    assert served.history(run, "sit/loss") == told
    assert len(served.history(run, "sit/mfu")) == 7400


@pytest.mark.slow
def test_a_server_killed_under_a_replay(served: World, server: MlflowServer) -> None:
    outbox = served.outbox()
    outbox.open("run", {})
    for step in range(1, 1201):
        outbox.metrics({"sit/loss": float(step)}, step)
    courier = Courier(served.storage, served.config)
    end = time.monotonic() + 60
    while len(list(served.storage.list(OUTBOX))) > 900:
        assert time.monotonic() < end
        time.sleep(0.01)
    server.kill()
    assert str(courier.close(120)).startswith(f"nothing listens at {server.uri}.") or "Connection aborted" in str(
        courier.failure
    )
    assert undelivered(served.storage) == [KEY]
    server.start()
    served.deliver()
    (run,) = served.runs()
    assert [(step, value) for step, value, _ in served.history(run, "sit/loss")] == [(i, i) for i in range(1, 1201)]


@pytest.mark.slow
def test_a_run_whose_creation_was_answered_in_vain(served: World, server: MlflowServer) -> None:
    """MLflow's client asks again, and makes a second one."""
    with fault_proxy(server.uri) as proxy:
        served.uri = proxy.url
        proxy.spoil_next("lost", lambda seen: seen.path.endswith("runs/create"))
        served.outbox().open("run", {})
        served.outbox().metrics({"sit/loss": 1.0}, 1)
        served.deliver()
        assert proxy.counts["lost"] == 1
    (run,) = served.runs()
    assert len(served.history(run, "sit/loss")) == 1


@pytest.mark.slow
def test_requests_that_fail(served: World, server: MlflowServer) -> None:
    outbox = served.outbox()
    outbox.open("run", {"a": "b"})
    outbox.params({"c": 1})
    for step in range(1, 201):
        outbox.metrics({"sit/loss": float(step)}, step)
        if step % 4 == 0:
            outbox.tags({"at": str(step)})
    outbox.close("FINISHED")
    with fault_proxy(server.uri) as proxy:
        proxy.fail(0.2, seed=6)
        served.uri = proxy.url
        for _ in range(100):
            try:
                served.deliver()
                break
            except TrackingError:
                continue
        assert proxy.counts["lost"]
    assert undelivered(served.storage) == []
    (run,) = served.runs()
    assert [(step, value) for step, value, _ in served.history(run, "sit/loss")] == [(i, i) for i in range(1, 201)]
    assert run.info.status == "FINISHED"
