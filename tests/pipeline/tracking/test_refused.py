"""What MLflow refuses for good is set aside with its reason; everything else is delivered, whatever lies behind it."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import EndpointConnectionError, NoCredentialsError
from mlflow.exceptions import MlflowException, RestException

from pipeline.tracking.courier import Courier, deliver, undelivered
from pipeline.tracking.errors import RefusedError, TrackingError, tracking_error
from pipeline.tracking.mlflow import MlflowWriter
from pipeline.tracking.outbox import OUTBOX, metric_event
from pipeline.tracking.refused import REFUSED, drop_refused, put_back, refusals
from pipeline.tracking.upload import RunFiles
from tests.support.outboxes import KEY, World

FIGURE = "analyze/0123/figures/pca.png"


def refused(world: World, key: str = KEY) -> dict[str, dict[str, int]]:
    """How many events of each kind, by reason."""
    return {reason: dict(kinds) for reason, kinds in refusals(world.storage).get(key, {}).items()}


def answer(status: int) -> requests.HTTPError:
    """As MLflow's client raises it for an upload through the server."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Client Error: for url: http://mlflow/api", response=response)


def test_a_run_that_was_deleted_holds_up_no_other(world: World) -> None:
    for key in (KEY, "other"):
        world.outbox(key).open(key, {})
        world.outbox(key).metrics({"sit/loss": 1.0}, 1)
    world.deliver()
    (gone,) = [run for run in world.runs() if run.info.run_name == KEY]
    world.client.delete_run(gone.info.run_id)
    for step in (2, 3):
        world.outbox().metrics({"sit/loss": 1.0}, step)
        world.outbox("other").metrics({"sit/loss": 1.0}, step)
    assert world.deliver() == 4
    (other,) = world.runs()
    assert [step for step, *_ in world.history(other, "sit/loss")] == [1, 2, 3]
    assert undelivered(world.storage) == []
    ((reason, kinds),) = refused(world).items()
    assert reason.startswith(f"MLflow at {world.uri} has no run '{KEY}'. If it was deleted there, restore it")
    assert kinds == {"metrics": 2}


def test_what_was_refused_is_delivered_when_its_cause_is_gone(world: World) -> None:
    world.outbox().open(KEY, {})
    world.outbox().metrics({"sit/loss": 1.0}, 1)
    world.deliver()
    (run,) = world.runs()
    world.client.delete_run(run.info.run_id)
    world.outbox().post(*(metric_event({"sit/loss": 1.0}, step) for step in (2, 3)))
    world.deliver()
    world.client.restore_run(run.info.run_id)
    assert put_back(world.storage) == 2
    world.deliver()
    assert [step for step, *_ in world.history(run, "sit/loss")] == [1, 2, 3]
    assert refused(world) == {}
    assert not list(world.storage.list(REFUSED))


def test_refused_steps_that_later_ones_have_overtaken_are_delivered(world: World) -> None:
    """Those that a resumed trainer has repeated meanwhile are there once."""
    world.outbox().open(KEY, {})
    world.outbox().metrics({"sit/loss": 1.0}, 1)
    world.deliver()
    (run,) = world.runs()
    world.client.delete_run(run.info.run_id)
    for step in (2, 3, 4):
        world.outbox().metrics({"sit/loss": float(step)}, step)
    world.deliver()
    world.client.restore_run(run.info.run_id)
    for step in (4, 5):
        world.outbox().metrics({"sit/loss": 9.0}, step)
    world.deliver()
    assert put_back(world.storage) == 3
    world.deliver()
    values = [(step, value) for step, value, _ in world.history(run, "sit/loss")]
    assert values == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 9.0), (5, 9.0)]


def test_a_process_that_dies_before_the_removal_sets_aside_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.outbox().metrics({"sit/loss": 1.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "delete", lambda path: None)
        world.deliver()
    world.deliver()
    assert list(refused(world).values()) == [{"metrics": 1}]
    assert drop_refused(world.storage) == 1
    assert undelivered(world.storage) == []


@pytest.mark.parametrize(
    "error",
    [
        answer(413),
        answer(403),
        answer(404),
        NoCredentialsError(),
        ImportError("No module named 'google'"),
        PermissionError(13, "Permission denied", "/mlflow"),
        MlflowException("API request to endpoint /x failed with error code 413 != 200. Response body: '<html>'"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:3]}",
)
def test_a_file_that_is_refused_holds_up_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """By a proxy before the server, or by an experiment whose files lie where this process cannot write."""
    world.storage.write(FIGURE, b"png")
    outbox = world.outbox()
    outbox.open("analyze", {})
    outbox.file(FIGURE, "figures")
    outbox.metrics({"sit/loss": 1.0}, 1)
    outbox.close("FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "upload", _raising(error))
        assert world.deliver() == 4
    (run,) = world.runs()
    assert run.info.status == "FINISHED"
    assert len(world.history(run, "sit/loss")) == 1
    ((reason, kinds),) = refused(world).items()
    if "413" in str(error):
        what = (
            f"a proxy in front of MLflow at {world.uri} takes no file of the size of {FIGURE} (3 bytes): status 413. "
        )
    else:
        what = f"MLflow's place for files, {run.info.artifact_uri}, did not take {FIGURE} ("
    assert reason.startswith(what)
    assert "Correct the cause" in reason
    assert kinds == {"file": 1}
    put_back(world.storage)
    world.deliver()
    assert [file.path for file in world.client.list_artifacts(run.info.run_id, "figures")] == ["figures/pca.png"]


@pytest.mark.parametrize("numbers", ["Run with id=0f401 not found", "length 6403 which exceeds 6000"])
def test_numbers_in_a_refusal_are_no_statuses(numbers: str) -> None:
    """Of a purged run's id, one in two thousand ends like the status of a login that is refused."""
    error = RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": numbers})
    assert isinstance(tracking_error(error, "http://mlflow"), RefusedError)
    denied = MlflowException("API request to endpoint /x failed with error code 403 != 200. Response body: ''")
    assert "denies this user" in str(tracking_error(denied, "http://mlflow"))


@pytest.mark.parametrize("place", ["gs://bucket/x", "unheard://of/x", "dbfs:/x"])
def test_a_place_that_this_machine_has_no_client_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Its package is not installed, MLflow knows no such place, or a login for it is not there."""
    monkeypatch.chdir(tmp_path)  # MLflow's client for one of them makes a database where it is
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    world.client.create_experiment(world.config.tracking.experiment, place)
    world.storage.write(FIGURE, b"png")
    outbox = world.outbox()
    outbox.open("analyze", {})
    outbox.file(FIGURE, "figures")
    outbox.metrics({"sit/loss": 1.0}, 1)
    assert world.deliver() == 3
    ((reason, kinds),) = refused(world).items()
    assert reason.startswith(f"MLflow's place for files, {place}/")
    assert kinds == {"file": 1}
    assert len(world.history(world.runs()[0], "sit/loss")) == 1


@pytest.mark.parametrize(
    "error",
    [
        answer(503),
        answer(429),
        requests.ConnectionError("Connection aborted"),
        requests.ReadTimeout("Read timed out"),
        MlflowException("API request to http://mlflow failed with exception HTTPConnectionPool: Max retries exceeded"),
        EndpointConnectionError(endpoint_url="http://s3"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:3]}",
)
def test_a_file_waits_while_its_place_is_away(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    world.storage.write(FIGURE, b"png")
    world.outbox().open("analyze", {})
    world.outbox().file(FIGURE, "figures")
    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "upload", _raising(error))
        with pytest.raises(TrackingError, match=r"is unavailable|did not say that it is stored within 60 s"):
            world.deliver()
    assert undelivered(world.storage) == [KEY]
    assert refused(world) == {}
    assert world.deliver() == 1


def _raising(error: Exception) -> Callable[..., Any]:
    def upload(*_: object) -> None:
        raise error

    return upload


def test_of_many_events_only_the_refused_one_is_set_aside(world: World) -> None:
    """In one file, and in files that are sent together."""
    outbox = world.outbox()
    outbox.open("run", {})
    outbox.post(metric_event({"sit/loss": 1.0}, 1), metric_event({"no name of a metric: $": 1.0}, 2))
    for step in (3, 4):
        outbox.metrics({"sit/loss": 1.0}, step)
    outbox.tags({"": "a tag without a name"})
    outbox.close("FINISHED")
    assert world.deliver() == 6
    (run,) = world.runs()
    assert [step for step, *_ in world.history(run, "sit/loss")] == [1, 3, 4]
    assert run.info.status == "FINISHED"
    counted: dict[str, int] = {}
    for kinds in refused(world).values():
        counted |= kinds
    assert counted == {"metrics": 1, "tags": 1}


@pytest.mark.parametrize("name", ["anna's quickstart", "50%", "ünï", "x = 1 AND"])
def test_runs_of_any_name_are_found_again(world: World, name: str) -> None:
    for step in (1, 2):
        world.outbox(name).open(name, {})
        world.outbox(name).metrics({"sit/loss": 1.0}, step)
        world.outbox(name).close("FINISHED")
        world.deliver()
    (run,) = world.runs()
    assert [step for step, *_ in world.history(run, "sit/loss")] == [1, 2]


def test_an_experiment_that_is_deleted_while_a_run_is_open(world: World) -> None:
    """Nothing is set aside: it is waited for, as it can be restored."""
    writer = MlflowWriter(world.uri, world.config)
    world.outbox().open("run", {})
    deliver(world.storage, writer)
    experiment = world.client.get_experiment_by_name(world.config.tracking.experiment)
    assert experiment is not None
    world.client.delete_experiment(experiment.experiment_id)
    world.outbox().metrics({"sit/loss": 1.0}, 1)
    with pytest.raises(TrackingError, match=r"'denoising-vae' was deleted\. Restore it .*--experiment-id"):
        deliver(world.storage, writer)
    world.client.restore_experiment(experiment.experiment_id)
    assert deliver(world.storage, writer) == 1
    assert refused(world) == {}


def test_the_courier_says_each_reason_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.courier.POLL_SECONDS", 0.01)
    said = list[str]()
    for step in range(1, 4):
        world.outbox().metrics({"sit/loss": 1.0}, step)
    courier = Courier(world.storage, world.config, said.append)
    assert courier.close(60) is None
    (line,) = said
    assert f"has no run '{KEY}'" in line
    assert line.endswith(f"what was refused is set aside (`python -m pipeline tracking show {KEY}`).")


def command(*words: str) -> None:
    from pipeline import __main__

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dvae", "tracking", *words])
        __main__.main()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_what_the_command_shows_and_drops(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--root", world.config.root, "--set", f"tracking.uri={world.uri}")
    command("show", *at)
    assert capsys.readouterr().out == "nothing is pending, nothing was refused\n"
    world.outbox().post(*(metric_event({"sit/loss": 1.0}, step) for step in (1, 2)))
    world.outbox("other").open("other", {})
    command("show", *at)
    assert capsys.readouterr().out == f"{KEY}  pending: 1 files of events\nother  pending: 1 files of events\n"
    command("sync", *at)
    assert capsys.readouterr().out == (
        "delivered 2 files of events; 0 runs have undelivered events\n"
        "MLflow refused 2 events, which are set aside: see `python -m pipeline tracking show`\n"
    )
    command("show", KEY, *at)
    assert capsys.readouterr().out.startswith(f"{KEY}  refused: 2 x metrics. MLflow at {world.uri} has no run '{KEY}'.")
    world.outbox().open("run", {})
    command("sync", *at)
    command("retry", *at)
    assert "MLflow refused" not in capsys.readouterr().out
    (run,) = [run for run in world.runs() if run.info.run_name == "run"]
    assert [step for step, *_ in world.history(run, "sit/loss")] == [1, 2]
    world.outbox("gone").metrics({"sit/loss": 1.0}, 1)
    command("sync", *at)
    command("drop", "gone", *at)
    assert capsys.readouterr().out.endswith("dropped 1 events that MLflow had refused\n")
    assert not list(world.storage.list(OUTBOX))
    assert not list(world.storage.list(REFUSED))
