"""MLflow with users, by the commands of the chart's containers: made at the first start, changed by the next."""

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from deploy.errors import ConnectError
from deploy.mlflow_users import make_users
from pipeline.errors import ConfigError
from pipeline.tracking.registry import champion
from tests.support import PROJECT
from tests.support.chart import named, render, values_of
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow


def containers() -> dict[str, list[str]]:
    values = values_of("trial") | {"mlflow": {"basicAuth": {"enabled": True, "existingSecret": "users"}}}
    deployment = named(render(values), "Deployment", "-mlflow")
    spec = deployment["spec"]["template"]["spec"]
    return {one["name"]: one["command"] for one in (*spec["initContainers"], *spec["containers"])}


def environment_in(folder: Path) -> dict[str, str]:
    return {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32,
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": "administers it",
        "PODS_USERNAME": "ray", "PODS_PASSWORD": f"100% {secrets.token_hex(8)}",
    }  # fmt: skip


def run(command: list[str], folder: Path, **environment: str) -> None:
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment, "PATH": path, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def status(server: MlflowServer, user: str, password: str) -> int:
    question: dict[str, Any] = {"json": {"max_results": 1}, "auth": (user, password), "timeout": 30}
    return requests.post(f"{server.uri}/api/2.0/mlflow/experiments/search", **question).status_code


def test_users_of_the_secret_may_and_others_may_not(tmp_path, monkeypatch):
    given = containers()
    environment = environment_in(tmp_path)
    assert "--app-name=basic-auth" in given["mlflow"] or "basic-auth" in given["mlflow"]
    run(given["migrate"], tmp_path, **environment)
    for password in (environment["PODS_PASSWORD"], "another-password"):  # the second start finds them there
        environment["PODS_PASSWORD"] = password
        run(given["users"], tmp_path, **environment)
    server = MlflowServer(
        tmp_path, environment["MLFLOW_BACKEND_STORE_URI"], None, "--app-name", "basic-auth", **environment
    )
    server.start()
    try:
        told = {who: status(server, *who) for who in (
            ("ray", "another-password"), ("admin", "administers it"), ("ray", "wrong-password"), ("mallory", "x" * 12)
        )}  # fmt: skip
        assert list(told.values()) == [200, 200, 401, 401]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ray")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
        assert champion(server.uri, "no-such-model") is None, "an absence, not a denial"
        client = MlflowClient(server.uri)
        client.create_registered_model("some-model")
        assert champion(server.uri, "some-model") is None
        client.create_model_version("some-model", "s3://elsewhere/model")
        client.set_registered_model_alias("some-model", "champion", "1")
        assert champion(server.uri, "some-model") == "1"
        anonymous = requests.post(f"{server.uri}/api/2.0/mlflow/experiments/search", json={}, timeout=30)
        assert anonymous.status_code == 401
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"PODS_PASSWORD": ""}, ConfigError, "PODS_PASSWORD is not set. Set both user and password in the Secret"),
        ({"MLFLOW_BACKEND_STORE_URI": ""}, ConfigError, "MLFLOW_BACKEND_STORE_URI is not set"),
        (
            {"PODS_PASSWORD": "short"},
            ConfigError,
            "MLflow refuses its users: .*12 characters.*Correct it in the Secret",
        ),
        ({"PODS_USERNAME": "admin"}, ConfigError, "are both named admin"),
        ({"MLFLOW_BACKEND_STORE_URI": "sqlite:////proc"}, ConnectError, "unable to open database file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(changed, error, words, tmp_path, monkeypatch):
    environment = {**environment_in(tmp_path), **changed}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # else it waits for a database for 100 s
    with pytest.raises(error, match=words) as told:
        make_users(environment)
    assert "%" not in str(told.value), "no password is shown"


def test_the_file_with_the_databases_password_is_its_owners(tmp_path, monkeypatch):
    environment = environment_in(tmp_path)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", environment["MLFLOW_AUTH_CONFIG_PATH"])
    assert make_users(environment) == ["admin", "ray"]
    assert Path(environment["MLFLOW_AUTH_CONFIG_PATH"]).stat().st_mode & 0o077 == 0
