"""The chart's MLflow objects, started by `podman play kube`: they migrate, serve and keep strangers out."""

import base64
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import yaml
from moto.server import ThreadedMotoServer

from tests.support.chart import named, render, values_of
from tests.support.containers import Image, logs, podman, until
from tests.support.groups import free_port

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]

_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
_API = "api/2.0/mlflow"


@dataclass(frozen=True)
class Server:
    address: str  # on this machine
    host: str  # by which the pods of the chart call it
    container: str

    def ask(self, method: str, path: str, host: str | None = None, **more: Any) -> requests.Response:
        headers = {"Host": host or self.host}
        return requests.request(method, f"{self.address}/{path}", headers=headers, timeout=60, **more)


@pytest.fixture(scope="module")
def s3() -> Iterator[int]:
    """An S3 server that pods reach, with the bucket of the chart's trial values; its port."""
    server = ThreadedMotoServer(ip_address="0.0.0.0", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    bucket(port).create()
    yield port
    server.stop()


def bucket(port: int) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    s3 = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys)
    return s3.Bucket("denoising-vae")


@contextmanager
def played(folder: Path, image: Image, s3_port: int, basic_auth: dict[str, str] | None = None) -> Iterator[Server]:
    """MLflow of the trial values as a pod; it, its volume and its Secrets are gone afterwards."""
    (network,) = json.loads(podman("network", "inspect", "podman").stdout)
    mark = secrets.token_hex(4)
    repository, _, tag = image.name.rpartition(":")
    values = values_of("trial") | {"image": {"repository": repository, "tag": tag}, "fullnameOverride": f"test-{mark}"}
    values["s3"] = {"endpoint": f"http://{network['subnets'][0]['gateway']}:{s3_port}", "existingSecret": f"s3-{mark}"}
    kept = {f"s3-{mark}": _KEYS}
    if basic_auth:
        values["mlflow"] = {"basicAuth": {"enabled": True, "existingSecret": f"auth-{mark}"}}
        kept[f"auth-{mark}"] = basic_auth
    objects = render(values)
    deployment, claim = (
        named(objects, kind, f"test-{mark}-mlflow") for kind in ("Deployment", "PersistentVolumeClaim")
    )
    port = free_port()
    suit_podman(deployment["spec"]["template"]["spec"], port)
    (folder / "pod.yaml").write_text(yaml.safe_dump_all([claim, deployment]))
    name = deployment["metadata"]["name"]
    for secret, content in kept.items():  # in the form that Podman 4.3 reads
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in content.items()}
        podman("secret", "create", secret, "-", given=json.dumps(encoded))
    try:
        podman("play", "kube", "--network", "podman", str(folder / "pod.yaml"))
        server = Server(f"http://127.0.0.1:{port}", f"{name}:5000", f"{name}-pod-0-mlflow")
        until(lambda: is_up(server), 180, lambda: logs(server.container))
        yield server
    finally:
        podman("pod", "rm", "--force", "--time", "5", f"{name}-pod-0", ok=False)
        podman("volume", "rm", "--force", name, ok=False)
        podman("secret", "rm", *kept)


def suit_podman(pod: dict[str, Any], port: int) -> None:
    """What Podman knows no way for, or another one than Kubernetes."""
    (container,) = pod["containers"]
    container["ports"][0]["hostPort"] = port  # there is no Service
    pod["restartPolicy"] = "Never"  # it would start an init container again that has done its work
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        del container[probe]  # it would call them by curl in the container, from systemd


def is_up(server: Server) -> bool:
    try:
        return server.ask("GET", "health", host="localhost").status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def server(image: Image, s3: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with played(tmp_path_factory.mktemp("pod"), image, s3) as up:
        yield up


def test_mlflow_serves(server: Server, s3: int) -> None:
    made = server.ask("POST", f"{_API}/experiments/create", json={"name": "first"})
    assert made.status_code == 200, made.text
    found = server.ask("GET", f"{_API}/experiments/get", params={"experiment_id": made.json()["experiment_id"]})
    assert found.json()["experiment"]["name"] == "first"
    # Artifacts go through the server, with keys that only it has.
    sent = server.ask("PUT", "api/2.0/mlflow-artifacts/artifacts/folder/file.txt", data=b"content")
    assert sent.status_code == 200, sent.text
    stored = bucket(s3).Object("trial/mlflow/folder/file.txt").get()["Body"].read()
    assert stored == b"content"


def test_mlflow_starts_once_the_init_container_has_migrated(server: Server) -> None:
    migrate = server.container.removesuffix("mlflow") + "migrate"
    chosen = ["--filter", f"container={migrate}", "--filter", f"container={server.container}"]
    told = podman("events", "--stream=false", *chosen, "--format", "{{.Name}} {{.Status}}").stdout.splitlines()
    assert told.index(f"{migrate} died") < told.index(f"{server.container} start")
    ask = (
        "import sqlite3; print(*sqlite3.connect('/data/mlflow.db').execute('SELECT version_num FROM alembic_version'))"
    )
    assert podman("exec", server.container, "python", "-c", ask).stdout.strip()


def test_mlflow_refuses_a_foreign_host(server: Server) -> None:
    assert server.ask("GET", f"{_API}/experiments/search?max_results=1").status_code == 200
    strange = server.ask("GET", f"{_API}/experiments/search?max_results=1", host="attacker.example")
    assert strange.status_code == 403


def test_mlflow_runs_as_the_chart_says(server: Server) -> None:
    _, *processes = podman("top", server.container, "huser", "capeff").stdout.splitlines()
    assert {tuple(process.split()) for process in processes} == {("10001", "none")}
    refused = podman("exec", server.container, "touch", "/opt/venv/x", ok=False)
    assert "Read-only file system" in refused.stderr


def test_mlflow_with_basic_auth(image: Image, s3: int, tmp_path: Path) -> None:
    kept = {"admin-username": "admin", "admin-password": secrets.token_hex(12), "flask-secret": secrets.token_hex(16),
            "username": "ray", "password": secrets.token_hex(12)}  # fmt: skip
    with played(tmp_path, image, s3, kept) as server:
        path = f"{_API}/experiments/search?max_results=1"
        assert server.ask("GET", path).status_code == 401
        assert server.ask("GET", path, auth=("admin", "password1234")).status_code == 401  # MLflow's default
        assert server.ask("GET", path, auth=("admin", kept["admin-password"])).status_code == 200
        assert server.ask("GET", path, auth=("ray", kept["password"])).status_code == 200
