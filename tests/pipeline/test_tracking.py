"""The way to MLflow by the outbox, on a real SQLite store: nothing is lost, nothing comes twice."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.loading import load_config
from pipeline.storage import open_storage
from pipeline.tracking import Courier, Outbox, Post, deliver, metric_event, undelivered

KEY = "quickstart-0123456789ab"


class World:
    """A root and an MLflow database beside it; `now` is the time that events carry, in milliseconds."""

    def __init__(self, tmp_path: Path) -> None:
        self.uri = f"sqlite:///{tmp_path}/mlflow.db"
        self.config: Config = load_config("quickstart", [f"tracking.uri={self.uri}"], str(tmp_path / "runs"))
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
        experiment = self.client.get_experiment_by_name("denoising-vae")
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
            with away(), pytest.raises(ConnectionError):
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
        assert courier.close(30) == "ConnectionError: connection refused"
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
    for last in (status, "FINISHED"):
        outbox = world.outbox()
        outbox.open("run", {})
        outbox.params({"a": last})
        outbox.metrics({"sit/loss": 1.0}, 1)
        outbox.close(last)
        world.deliver()
    assert [run.info.status for run in world.runs()] == ["FINISHED"] * runs
    assert world.runs()[0].data.params == {"a": status}, "a parameter was said twice, and once is what MLflow takes"


def test_a_child_of_a_run_that_is_begun_anew_goes_to_the_new_one(world: World) -> None:
    for _ in range(2):
        world.outbox().open("quickstart", {})
        world.outbox(f"{KEY}/encode").open("encode", {}, parent=KEY)
        world.outbox(f"{KEY}/encode").close("FINISHED")
        world.outbox().close("FINISHED")
    world.deliver()
    first, _, second, _ = world.runs()
    parents = {run.data.tags.get("mlflow.parentRunId") for run in world.runs()} - {None}
    assert parents == {first.info.run_id, second.info.run_id}


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
    with pytest.raises(PipelineError, match=f"has no run '{KEY}'"):
        world.deliver()
    assert undelivered(world.storage) == [KEY]


def test_where_mlflow_is(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = load_config("quickstart", [], str(tmp_path / "runs"))
    assert tracking.tracking_uri(local) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking.tracking_uri(local) == "http://mlflow:5000"
    assert tracking.tracking_uri(world.config) == world.uri
