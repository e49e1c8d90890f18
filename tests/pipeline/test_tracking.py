"""The way to MLflow by the outbox, on a real SQLite store and on real servers: nothing is lost, nothing comes twice."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from fault_proxy import fault_proxy
from mlflow import MlflowClient
from mlflow_server import MlflowServer, running_mlflow
from postgres import postgres_is_installed, running_postgres

from pipeline import tracking
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.loading import load_config
from pipeline.storage import open_storage
from pipeline.tracking import Courier, Outbox, Post, deliver, metric_event, undelivered
from pipeline.tracking_errors import RefusedError, TrackingError

KEY = "quickstart-0123456789ab"


class World:
    """A root and an MLflow database beside it; `now` is the time that events carry, in milliseconds."""

    def __init__(self, tmp_path: Path, uri: str | None = None, root: str | None = None) -> None:
        self.uri = uri or f"sqlite:///{tmp_path}/mlflow.db"
        self.config: Config = load_config("quickstart", [f"tracking.uri={self.uri}"], root or str(tmp_path / "runs"))
        self.storage = open_storage(self.config.root)
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.now = 1_700_000_000_000

    def tick(self) -> int:
        self.now += 1000
        return self.now

    def outbox(self, key: str = KEY) -> Outbox:
        return Outbox(self.storage, key)

    def deliver(self) -> int:
        """As a driver that has just started would."""
        return deliver(self.storage, Post(self.uri, self.config))

    def runs(self) -> list[Any]:
        """All runs, the oldest first."""
        experiment = self.client.get_experiment_by_name(self.config.tracking.experiment)
        if experiment is None:
            return []
        return list(self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    def history(self, run: Any, name: str) -> list[tuple[int, float, int]]:
        """Step, value and time of a metric, in the order of the steps."""
        metrics = self.client.get_metric_history(run.info.run_id, name)
        return sorted((metric.step, metric.value, metric.timestamp) for metric in metrics)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database that MLflow has set up, which takes it seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def world(tmp_path: Path, template: bytes, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("MLFLOW_TRACKING_URI", "DVAE_SITE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mlflow.db").write_bytes(template)
    world = World(tmp_path)
    monkeypatch.setattr(tracking, "_milliseconds", world.tick)
    return world


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which MLflow does not answer."""

    def refuse(_: Post) -> Any:
        raise ConnectionError("connection refused")

    class Away:
        def __enter__(self) -> None:
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(Post, "client", property(refuse))

        def __exit__(self, *_: object) -> None:
            self.patch.undo()

    return Away


def test_what_happened_arrives_with_its_steps_and_times(world: World) -> None:
    outbox = world.outbox()
    outbox.open("quickstart", {"dvae.stage": "pipeline"})
    opened = world.now
    outbox.params({"sit.steps": 600, "data.uri": None, "long": "x" * 7000})
    outbox.tags({"dvae.cached.prepare": "abc"})
    told = []
    for step in (1, 2, 50):
        outbox.metrics({"sit/loss": 1 / step, "sit/mfu": 0.5}, step)
        told.append((step, 1 / step, world.now))
    outbox.close("FINISHED")
    closed = world.now
    world.now += 10**6  # much later
    assert world.deliver() == 7
    (run,) = world.runs()
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", opened, closed)
    assert run.info.run_name == "quickstart"
    assert world.history(run, "sit/loss") == told
    assert len(world.history(run, "sit/mfu")) == 3
    assert run.data.params == {"sit.steps": "600", "data.uri": "None", "long": "x" * 6000}
    assert run.data.tags.items() >= {"dvae.stage": "pipeline", "dvae.cached.prepare": "abc"}.items()
    assert undelivered(world.storage) == []
    assert world.deliver() == 0


@pytest.mark.parametrize("gone", ["start", "middle", "end"])
def test_an_outage_loses_nothing(world: World, away: Callable[[], Any], gone: str) -> None:
    outbox = world.outbox()
    parts: dict[str, Callable[[], None]] = {
        "start": lambda: (outbox.open("run", {}), outbox.params({"a": 1}), outbox.metrics({"sit/loss": 3.0}, 1)),
        "middle": lambda: (outbox.metrics({"sit/loss": 2.0}, 2), outbox.metrics({"sit/loss": 1.0}, 3)),
        "end": lambda: (outbox.metrics({"sit/loss": 0.5}, 4), outbox.close("FINISHED")),
    }  # type: ignore[dict-item]
    for part, post in parts.items():
        post()
        if part == gone:
            with away(), pytest.raises(TrackingError, match="connection refused"):
                world.deliver()
            assert undelivered(world.storage) == [KEY]
        elif part == "end" or gone != "start":
            world.deliver()
    world.deliver()
    (run,) = world.runs()
    assert run.info.status == "FINISHED"
    assert [(step, value) for step, value, _ in world.history(run, "sit/loss")] == [(1, 3), (2, 2), (3, 1), (4, 0.5)]
    assert run.data.params == {"a": "1"}
    assert undelivered(world.storage) == []


def test_the_courier_waits_for_mlflow_and_says_so(
    world: World, away: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.01)
    outbox = world.outbox()
    outbox.open("run", {})
    with away():
        courier = Courier(world.storage, world.config)
        outbox.metrics({"sit/loss": 1.0}, 1)
        assert courier.close(30) == (
            f"MLflow at {world.uri} does not answer, or is in trouble (connection refused). Is it up? See tracking.uri "
            "and MLFLOW_TRACKING_URI."
        )
    assert undelivered(world.storage) == [KEY]
    courier = Courier(world.storage, world.config)
    outbox.close("FINISHED")
    assert courier.close(30) is None
    assert undelivered(world.storage) == []
    (run,) = world.runs()
    assert [step for step, *_ in world.history(run, "sit/loss")] == [1]


@pytest.mark.parametrize("before", [True, False])
def test_the_steps_that_a_resumed_trainer_repeats_come_once(world: World, before: bool) -> None:
    """Whether the first attempt's were delivered before the second began or only with its own."""
    first = world.outbox()
    first.open("train-sit", {})
    first.post(*(metric_event({"sit/loss": 1.0}, step) for step in range(1, 7)))
    first.close("KILLED")
    if before:
        world.deliver()
    second = world.outbox()
    second.open("train-sit", {})
    second.post(*(metric_event({"sit/loss": 1.0}, step) for step in range(4, 9)))
    second.close("FINISHED")
    world.deliver()
    (run,) = world.runs()
    assert [step for step, *_ in world.history(run, "sit/loss")] == list(range(1, 9))
    assert run.info.status == "FINISHED"


def test_a_file_that_was_sent_but_not_removed_comes_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver dies between MLflow's answer and the removal."""
    outbox = world.outbox()
    outbox.open("run", {})
    outbox.metrics({"sit/loss": 1.0}, 3)
    outbox.metrics({"seconds": 2.0})
    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "delete", lambda path: None)
        assert world.deliver() == 3
    assert world.deliver() == 3
    (run,) = world.runs()
    assert len(world.history(run, "sit/loss")) == len(world.history(run, "seconds")) == 1


def test_two_who_deliver_at_once_make_one_run(world: World) -> None:
    outbox = world.outbox()
    outbox.open("run", {})
    for step in range(1, 9):
        outbox.metrics({"sit/loss": 1.0}, step)
    outbox.close("FINISHED")
    start, errors, counts = threading.Barrier(2), list[Exception](), list[int]()

    def send() -> None:
        start.wait()
        try:
            counts.append(world.deliver())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(counts) == [0, 10]
    (run,) = world.runs()
    assert [step for step, *_ in world.history(run, "sit/loss")] == list(range(1, 9))


def test_a_stage_is_a_child_of_its_pipeline_run(world: World) -> None:
    world.outbox().open("quickstart", {})
    world.outbox(f"{KEY}/prepare").open("prepare", {}, parent=KEY)
    world.outbox(f"{KEY}/prepare").close("FINISHED")
    world.outbox(f"{KEY}/encode").open("encode", {}, parent=KEY)
    world.deliver()
    parent, *children = world.runs()
    assert {run.info.run_name for run in children} == {"prepare", "encode"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert "mlflow.parentRunId" not in parent.data.tags


def test_inputs_are_datasets(world: World) -> None:
    outbox = world.outbox()
    outbox.open("encode", {})
    outbox.dataset("prepare", "0123abcd", "file:///runs/prepare/0123", "encode")
    world.deliver()
    (run,) = world.runs()
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("prepare", "0123abcd")
    assert "file:///runs/prepare/0123" in given.dataset.source
    assert {(tag.key, tag.value) for tag in given.tags} == {("mlflow.data.context", "encode")}


@pytest.mark.parametrize(("status", "runs"), [("FAILED", 1), ("KILLED", 1), ("FINISHED", 2)])
def test_a_failed_run_goes_on_and_a_finished_one_stays(world: World, status: str, runs: int) -> None:
    world.outbox("parent").open("parent", {})
    world.deliver()
    for last in (status, "FINISHED"):
        outbox = world.outbox()
        outbox.open("run", {}, parent="parent")
        outbox.params({"a": last})
        outbox.metrics({"sit/loss": 1.0}, 1)
        outbox.close(last)
        world.deliver()
    made = [run for run in world.runs() if run.info.run_name == "run"]
    assert [run.info.status for run in made] == ["FINISHED"] * runs
    assert made[0].data.params == {"a": status}, "a parameter was said twice, and once is what MLflow takes"


def test_a_pipeline_run_goes_on_though_it_was_finished(world: World) -> None:
    """Its stages may be jobs of their own; what a stage makes anew is a run of its own."""
    for _ in range(2):
        world.outbox().open("quickstart", {})
        world.outbox(f"{KEY}/encode").open("encode", {}, parent=KEY)
        world.outbox(f"{KEY}/encode").close("FINISHED")
        world.outbox().close("FINISHED")
    world.deliver()
    parent, *children = world.runs()
    assert [run.info.run_name for run in children] == ["encode", "encode"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"


def test_what_waits_is_listed_and_one_run_can_be_sent_alone(world: World) -> None:
    assert undelivered(world.storage) == []
    for key in (KEY, f"{KEY}/prepare", "other-1"):
        world.outbox(key).open(key, {})
    assert undelivered(world.storage) == sorted([KEY, f"{KEY}/prepare", "other-1"])
    assert deliver(world.storage, Post(world.uri, world.config), KEY) == 2
    assert undelivered(world.storage) == ["other-1"]


def test_figures_are_shown(world: World) -> None:
    world.storage.write("analyze/0123/figures/pca.png", b"png")
    outbox = world.outbox()
    outbox.open("analyze", {})
    outbox.file("analyze/0123/figures/pca.png", "figures")
    world.deliver()
    (run,) = world.runs()
    assert [file.path for file in world.client.list_artifacts(run.info.run_id, "figures")] == ["figures/pca.png"]
    assert world.storage.exists("analyze/0123/figures/pca.png")


def test_events_of_an_unknown_run_stay(world: World) -> None:
    world.outbox().metrics({"sit/loss": 1.0}, 1)
    with pytest.raises(RefusedError, match=f"has no run '{KEY}'. Its events stay; to give them up, delete file://"):
        world.deliver()
    assert undelivered(world.storage) == [KEY]


def test_events_that_are_refused_hold_up_no_other_run(world: World) -> None:
    """A run that was deleted in MLflow while it went on."""
    for key in (KEY, "other"):
        world.outbox(key).open(key, {})
        world.outbox(key).metrics({"sit/loss": 1.0}, 1)
    world.deliver()
    (gone,) = [run for run in world.runs() if run.info.run_name == KEY]
    world.client.delete_run(gone.info.run_id)
    for step in (2, 3):
        world.outbox().metrics({"sit/loss": 1.0}, step)
        world.outbox("other").metrics({"sit/loss": 1.0}, step)
    with pytest.raises(RefusedError):
        world.deliver()
    (other,) = world.runs()
    assert [step for step, *_ in world.history(other, "sit/loss")] == [1, 2, 3]
    assert undelivered(world.storage) == [KEY]
    assert len(list(world.storage.list(f"{tracking.OUTBOX}/{KEY}"))) == 2


def test_an_experiment_that_was_deleted(world: World) -> None:
    world.outbox().open("run", {})
    made = world.client.create_experiment("denoising-vae")
    world.client.delete_experiment(made)
    with pytest.raises(TrackingError, match=r"'denoising-vae' is deleted\. Restore it .*--experiment-id"):
        world.deliver()


def test_a_figure_that_has_gone_is_not_waited_for(world: World) -> None:
    world.outbox().open("run", {})
    world.outbox().file("analyze/0123/figures/pca.png", "figures")
    world.outbox().close("FINISHED")
    assert world.deliver() == 3


def test_where_mlflow_is(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = load_config("quickstart", [], str(tmp_path / "runs"))
    assert tracking.tracking_uri(local) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.tracking_uri(local) == "http://mlflow:5000"
    assert tracking.tracking_uri(world.config) == world.uri


@pytest.mark.parametrize("login", ["me:pass@word", "token"])
def test_where_mlflow_is_has_no_login_in_it(login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be in every message, in the config that is sent, and in MLflow's own tags."""
    uri = f"https://{login}@mlflow.example/x@y"
    with pytest.raises(ConfigError, match=r"^tracking: uri holds a user or password; MLFLOW_TR") as refused:
        load_config("quickstart", [f"tracking.uri={uri}"], str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI holds a user or password") as known:
        tracking.tracking_uri(load_config("quickstart", [], str(tmp_path)))
    assert login not in f"{refused.value} {known.value}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/x@y")
    tracking.tracking_uri(load_config("quickstart", [], str(tmp_path)))


# --- deliverers that die, and several at once ---

DELIVER = """
import os, signal, sys
from pipeline.loading import load_config
from pipeline.storage import LocalStorage, open_storage
from pipeline import tracking

root, uri, fatal, count = sys.argv[1:]
config = load_config("quickstart", [f"tracking.uri={uri}"], root)
storage, post = open_storage(root), tracking.Post(uri, config)
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
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def wide(step: int) -> dict[str, float]:
    return {f"sit/loss_{i}": float(step) for i in range(7)}


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
def test_drivers_that_deliver_from_one_bucket(tmp_path: Path, template: bytes, s3_root: str) -> None:
    (tmp_path / "mlflow.db").write_bytes(template)
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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow on PostgreSQL, where that is installed, else on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        store = stack.enter_context(running_postgres()) if postgres_is_installed() else None
        yield stack.enter_context(running_mlflow(folder, store))


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
    while len(list(served.storage.list(tracking.OUTBOX))) > 900:
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


# --- refusals, told by `tracking sync` and by the courier alike ---


def synced(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str) -> str:
    """What `tracking sync` says of this address; and the courier says the same, once."""
    from pipeline import __main__

    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.01)
    words = ["dvae", "tracking", "sync", KEY, "--root", world.config.root, "--set", f"tracking.uri={uri}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    said = list[str]()
    named = world.config.tracking.model_copy(update={"uri": uri})
    courier = Courier(world.storage, world.config.model_copy(update={"tracking": named}), said.append)
    end = time.monotonic() + 30
    while not said:
        assert time.monotonic() < end
        time.sleep(0.05)
    failure = courier.close(60)
    assert line == f"error: {failure}"
    assert said == [f"[yellow]![/] {failure} The run goes on, and what is not delivered waits."]
    assert undelivered(world.storage) == [KEY]
    print(line)
    return line.removeprefix("error: ")


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Events in an outbox, and an environment without a login."""
    for name in ("DVAE_SITE", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"):
        monkeypatch.setenv(name, "0")
    world = World(tmp_path)
    world.outbox().open("run", {})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield world
    for number, handler in handlers.items():  # the command line has set its own
        signal.signal(number, handler)


def test_wrong_addresses(
    waiting: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], s3_endpoint: str
) -> None:
    said = {
        "http://127.0.0.1:1": "nothing listens at {}. Is MLflow up? ",
        "http://mlflow.invalid": "the host of {} is not known. ",
        s3_endpoint: "what answers at {} is no MLflow. ",
        s3_endpoint.replace("http:", "https:"): "{} does not speak TLS. Write http:// there, or correct the port. ",
    }
    for uri, text in said.items():
        line = synced(waiting, monkeypatch, capsys, uri)
        assert line == text.format(uri) + "See tracking.uri and MLFLOW_TRACKING_URI."


def test_a_login_with_a_line_end_is_not_shown(
    waiting: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], s3_endpoint: str
) -> None:
    """By MLflow's own client, which says it with the login."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "geheim\n")
    line = synced(waiting, monkeypatch, capsys, s3_endpoint)
    assert line.startswith(f"the login for MLflow at {s3_endpoint} holds a line end or the like. Write it without")
    assert "geheim" not in line


@pytest.mark.slow
def test_a_host_that_the_server_does_not_allow(
    waiting: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with running_mlflow(tmp_path, None, None, "--allowed-hosts", "mlflow.example") as server:
        assert synced(waiting, monkeypatch, capsys, server.uri) == (
            f"MLflow at {server.uri} does not serve under that name (Invalid Host header). Start it with "
            f"--allowed-hosts 127.0.0.1:{server.port} (in the chart: mlflow.allowedHosts), or use a name that it knows."
        )


@pytest.mark.slow
def test_logins(
    waiting: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """None, a wrong one, one that may only read, and at last a right one."""
    settings, admin = tmp_path / "auth.ini", ("admin", "a-password-of-tests")
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
        f"admin_username = {admin[0]}\nadmin_password = {admin[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "tests"}
    with running_mlflow(tmp_path, None, None, "--app-name", "basic-auth", **environment) as server:
        api = f"{server.uri}/api/2.0/mlflow"
        reader = {"username": "reader", "password": "another-password"}
        assert requests.post(f"{api}/users/create", json=reader, auth=admin, timeout=10).ok
        made = {"name": waiting.config.tracking.experiment}
        assert requests.post(f"{api}/experiments/create", json=made, auth=admin, timeout=10).ok
        at, variables = f"MLflow at {server.uri}", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        assert synced(waiting, monkeypatch, capsys, server.uri) == f"{at} wants a login. Set {variables}"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        assert synced(waiting, monkeypatch, capsys, server.uri) == f"{at} does not accept this login. Check {variables}"
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", reader["password"])
        assert synced(waiting, monkeypatch, capsys, server.uri) == (
            f"{at} does not let this user write. Give the user of MLFLOW_TRACKING_USERNAME the permission EDIT on the "
            "experiment (tracking.experiment)."
        )
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", admin[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", admin[1])
        assert deliver(waiting.storage, Post(server.uri, waiting.config)) == 1
