"""The way to MLflow by the outbox, on a real SQLite store: nothing is lost, nothing comes twice."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.tracking.courier import Courier, deliver, undelivered
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.mlflow import MlflowWriter
from pipeline.tracking.outbox import metric_event
from tests.support.outboxes import KEY, World


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
    parts: dict[str, list[Callable[[], None]]] = {
        "start": [
            lambda: outbox.open("run", {}),
            lambda: outbox.params({"a": 1}),
            lambda: outbox.metrics({"sit/loss": 3.0}, 1),
        ],
        "middle": [lambda: outbox.metrics({"sit/loss": 2.0}, 2), lambda: outbox.metrics({"sit/loss": 1.0}, 3)],
        "end": [lambda: outbox.metrics({"sit/loss": 0.5}, 4), lambda: outbox.close("FINISHED")],
    }
    for part, posts in parts.items():
        for post in posts:
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
    monkeypatch.setattr("pipeline.tracking.courier.POLL_SECONDS", 0.01)
    outbox = world.outbox()
    outbox.open("run", {})
    with away():
        courier = Courier(world.storage, world.config)
        outbox.metrics({"sit/loss": 1.0}, 1)
        assert courier.close(30) == (
            f"MLflow at {world.uri} is unavailable (connection refused). Check that it is running. Check tracking.uri "
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
    assert deliver(world.storage, MlflowWriter(world.uri, world.config), KEY) == 2
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


def test_an_experiment_that_was_deleted(world: World) -> None:
    world.outbox().open("run", {})
    made = world.client.create_experiment("denoising-vae")
    world.client.delete_experiment(made)
    with pytest.raises(TrackingError, match=r"'denoising-vae' was deleted\. Restore it .*--experiment-id"):
        world.deliver()


def test_a_figure_that_has_gone_is_not_waited_for(world: World) -> None:
    world.outbox().open("run", {})
    world.outbox().file("analyze/0123/figures/pca.png", "figures")
    world.outbox().close("FINISHED")
    assert world.deliver() == 3
