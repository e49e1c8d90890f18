"""An MLflow that is not there or does not want: `tracking sync` and the courier say the same line, with its hint."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline import tracking
from pipeline.config.loading import load_config
from pipeline.errors import ConfigError
from pipeline.tracking.courier import Courier, deliver, undelivered
from pipeline.tracking.mlflow import MlflowWriter
from tests.support.mlflow_server import running_mlflow
from tests.support.outboxes import KEY, World


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
    with pytest.raises(ConfigError, match=r"^tracking: uri contains a user or password; use MLFLOW_TR") as refused:
        load_config("quickstart", [f"tracking.uri={uri}"], str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI contains a user or password") as known:
        tracking.tracking_uri(load_config("quickstart", [], str(tmp_path)))
    assert login not in f"{refused.value} {known.value}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/x@y")
    tracking.tracking_uri(load_config("quickstart", [], str(tmp_path)))


def synced(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str) -> str:
    """What `tracking sync` says of this address; and the courier says the same, once."""
    from pipeline import __main__

    monkeypatch.setattr("pipeline.tracking.courier.POLL_SECONDS", 0.01)
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
    assert said == [f"[yellow]![/] {failure} The run continues; undelivered events stay in the outbox."]
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
        "http://127.0.0.1:1": "nothing listens at {}. Start MLflow. ",
        "http://mlflow.invalid": "the host of {} cannot be resolved. ",
        s3_endpoint: "the server at {} is not MLflow. ",
        s3_endpoint.replace("http:", "https:"): "{} does not speak TLS. Write http:// there, or correct the port. ",
    }
    for uri, text in said.items():
        line = synced(waiting, monkeypatch, capsys, uri)
        assert line == text.format(uri) + "Check tracking.uri and MLFLOW_TRACKING_URI."


def test_a_login_with_a_line_end_is_not_shown(
    waiting: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], s3_endpoint: str
) -> None:
    """By MLflow's own client, which says it with the login."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "geheim\n")
    line = synced(waiting, monkeypatch, capsys, s3_endpoint)
    assert line.startswith(f"the login for MLflow at {s3_endpoint} contains a line break or another invalid ")
    assert "geheim" not in line


@pytest.mark.slow
def test_a_host_that_the_server_does_not_allow(
    waiting: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with running_mlflow(tmp_path, None, None, "--allowed-hosts", "mlflow.example") as server:
        assert synced(waiting, monkeypatch, capsys, server.uri) == (
            f"MLflow at {server.uri} does not accept requests for this host name (Invalid Host header). Start it "
            f"with --allowed-hosts 127.0.0.1:{server.port} (in the chart: mlflow.allowedHosts), or use a name that it "
            "accepts."
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
        assert synced(waiting, monkeypatch, capsys, server.uri) == f"{at} requires a login. Set {variables}"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        assert synced(waiting, monkeypatch, capsys, server.uri) == f"{at} does not accept this login. Check {variables}"
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", reader["password"])
        assert synced(waiting, monkeypatch, capsys, server.uri) == (
            f"{at} denies this user write access. Grant the user MLFLOW_TRACKING_USERNAME the permission EDIT on the "
            "experiment (tracking.experiment)."
        )
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", admin[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", admin[1])
        assert deliver(waiting.storage, MlflowWriter(server.uri, waiting.config)) == 1
