"""MLflow's registry asked without MLflow: what else may answer there, and what is said of it."""

import http.server
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import load_config
from pipeline.errors import ConfigError
from pipeline.storage.uri import open_storage
from pipeline.tracking.courier import deliver
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.mlflow import MlflowWriter, tracking_uri
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.registry import aliased_tags, champion, has_version, input_tag, runs_page
from tests.support.registration import Registration, digest
from tests.support.tls import certificate


class Service(http.server.BaseHTTPRequestHandler):
    """Some other service: JSON, but none of MLflow's."""

    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b"3", b'{"ok": 1}', b'{"model_version": 3}'])
def test_what_answers_is_no_registry(service, monkeypatch, body):
    monkeypatch.setattr(Service, "body", body)
    with pytest.raises(TrackingError, match="is not MLflow"):
        champion(service, "m")


@pytest.mark.parametrize("body", [b"hello", b'{"experiment": 3}', b'{"ok": 1}'])
def test_what_answers_has_no_page_of_runs(service, monkeypatch, body):
    monkeypatch.setattr(Service, "body", body)
    with pytest.raises(TrackingError, match="is not MLflow"):
        runs_page(service, "denoising-vae", "quickstart-ab")


def test_the_page_of_a_run_is_a_search_for_its_key(service, monkeypatch):
    monkeypatch.setattr(Service, "body", b'{"experiment": {"experiment_id": "7", "name": "denoising-vae"}}')
    page = runs_page(f"{service}/", "denoising-vae", "quickstart-ab")
    assert page == f"{service}/#/experiments/7?searchFilter=tags.%60dvae.key%60%20%3D%20%27quickstart-ab%27"
    monkeypatch.setattr(Service, "body", b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')
    assert runs_page(service, "denoising-vae", "quickstart-ab") is None


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://localhost:50o0", "is not a URL"), ("http://h:99999", "is not a URL"), ("http://[::1", "is not a URL"),
        ("http://mlflow.invalid", "cannot be resolved"), ("http://127.0.0.1:9", "nothing listens"),
        ("ftp://h", "be queried"),
    ],
)  # fmt: skip
def test_registries_that_are_nowhere(uri, said):
    with pytest.raises(TrackingError, match=said):
        champion(uri, "m")


def test_a_login_with_a_line_end_is_not_shown(service, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "geheim\n")
    with pytest.raises(TrackingError, match="contains a line break") as caught:
        champion(service, "m")
    assert "geheim" not in str(caught.value)


def test_a_registry_by_tls(tmp_path, monkeypatch):
    """Known by the authority that MLflow's own client is told of."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = certificate(tmp_path)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Service, "body", b"{}")
    uri = f"https://127.0.0.1:{server.server_port}"
    with pytest.raises(TrackingError, match="TLS fails at"):
        has_version(uri, "m", "0" * 64)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(pem))
    assert not has_version(uri, "m", "0" * 64)
    server.shutdown()


def test_the_registry_is_asked_without_mlflow(registration: Registration) -> None:
    name, fingerprint = "denoising-vae", registration.fingerprint(0.95)
    empty = registration.folder / "never.db"
    assert not has_version(f"sqlite:///{empty}", name, fingerprint)
    assert not empty.exists()
    assert not has_version(registration.tracking, name, fingerprint)
    registration.register(0.95)
    assert has_version(registration.tracking, name, fingerprint)
    tags = registration.client.get_model_version(name, "1").tags
    assert aliased_tags(registration.tracking, name, "champion") == tags
    assert input_tag("train-sit") in tags
    assert aliased_tags(registration.tracking, name, "nobody") is None
    assert not has_version(registration.tracking, "another", fingerprint)
    assert not has_version(registration.tracking, name, digest("another"))
    registration.client.delete_model_version(name, "1")
    assert not has_version(registration.tracking, name, fingerprint)


def test_a_registry_that_mlflow_is_just_setting_up_has_no_version(tmp_path: Path) -> None:
    """Its tables get their columns one migration after the other."""
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE model_versions (name TEXT, version INT, current_stage TEXT)")
        database.execute("CREATE TABLE model_version_tags (name TEXT, version INT, key TEXT, value TEXT)")
    assert not has_version(f"sqlite:///{tmp_path}/mlflow.db", "denoising-vae", digest("any"))
    assert champion(f"sqlite:///{tmp_path}/mlflow.db", "denoising-vae") is None
    assert aliased_tags(f"sqlite:///{tmp_path}/mlflow.db", "denoising-vae", "champion") is None


@pytest.mark.parametrize("name", ["50%", "100%zz", "no #1", "ünï"])
def test_a_local_root_of_any_name_has_its_database_in_it(
    tmp_path: Path, mlflow_template: bytes, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "DVAE_SITE"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / name / "runs"
    root.mkdir(parents=True)
    (root / "mlflow.db").write_bytes(mlflow_template)
    config = load_config("quickstart", [], str(root))
    storage = open_storage(config.root)
    storage.write("analyze/figure.png", b"png")
    outbox = Outbox(storage, "run")
    outbox.open("run", {})
    outbox.file("analyze/figure.png", "figures")
    assert deliver(storage, MlflowWriter(tracking_uri(config), config)) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(list(root.glob("mlflow-artifacts/*/artifacts/figures/figure.png"))) == 1
    assert not has_version(tracking_uri(config), "model", "0123")


@pytest.mark.parametrize("name", ["a%20b", "what?"])
def test_a_local_root_that_no_address_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The database would lie beside the root."""
    for variable in ("MLFLOW_TRACKING_URI", "DVAE_SITE"):
        monkeypatch.delenv(variable, raising=False)
    root = tmp_path / name
    with pytest.raises(ConfigError, match=r"cannot have its database at .*Rename the folder, take another root"):
        tracking_uri(load_config("quickstart", [], str(root)))
    served = load_config("quickstart", ["tracking.uri=http://mlflow"], str(root))
    assert tracking_uri(served) == "http://mlflow"
