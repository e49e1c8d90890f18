"""What tests of every floor share: servers, each started once for all that use it, and roots to store under.

Where several processes share the tests (pytest-xdist), each starts those that its files use.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.support.ceph import Ceph, make_bucket, running_ceph
from tests.support.postgres import another_database, running_postgres

if TYPE_CHECKING:
    from tests.support.api_server import ApiServer
    from tests.support.sharing import SharedByServer


settings.register_profile("shared", deadline=None)  # the machine is: a pause in an example is no finding
settings.load_profile("shared")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "SharedByServer | None":
    """A file at a time, and those of the API server together."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.support.sharing import SharedByServer

    return SharedByServer(config, log)


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """Ceph's S3 gateway; skips where it is not installed."""
    with running_ceph() as server:
        yield server


@pytest.fixture(scope="session")
def ceph_owner(ceph: Ceph) -> dict[str, str]:
    """The settings of a user who owns the bucket `tests`."""
    user = ceph.add_user("owner")
    make_bucket(user, "tests")
    return user


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with running_postgres() as uri:
        yield uri


@pytest.fixture(scope="session")
def database(postgres: str) -> Callable[[], str]:
    """Makes the URI of an empty database on PostgreSQL; skips where that is not installed."""
    return lambda: another_database(postgres)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["ApiServer"]:
    """Kubernetes', with KubeRay's CRDs. Tests keep apart by namespaces of their own; who stops it starts it again."""
    from tests.support.api_server import binaries, running_api_server  # the client takes seconds to import

    programs = binaries()
    if programs is None:
        pytest.skip("no etcd and kube-apiserver: `.ci/kubernetes-binaries build/kubernetes` builds them (needs Go)")
    if "DVAE_TEST_CRDS" not in os.environ:
        pytest.skip("DVAE_TEST_CRDS is not set: it names the folder with KubeRay's CRDs")
    with running_api_server(programs, Path(os.environ["DVAE_TEST_CRDS"]), tmp_path_factory.mktemp("kubernetes")) as up:
        yield up


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database that MLflow has set up, which takes it seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a moto server that lives as long as the tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = _conditions_hold(server._server.app)
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _conditions_hold(app: Callable[..., Any]) -> Callable[..., Any]:
    """One conditional write at a time. moto checks a condition and writes in two steps, where S3 does both in one."""
    writing = threading.Lock()

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        conditional = environ.keys() & {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"}
        with writing if conditional else nullcontext():
            return app(environ, start_response)

    return checked


@pytest.fixture
def s3_root(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh s3://bucket/prefix; AWS_* in the environment lead there, in child processes too."""
    import boto3

    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="tests")
    return f"s3://tests/{uuid.uuid4().hex}"


@pytest.fixture(params=["file", "s3"])
def any_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A root to store under: the test runs once on file:// and once on s3://."""
    if request.param == "s3":
        root: str = request.getfixturevalue("s3_root")
        return root
    return (tmp_path / "root").as_uri()


@pytest.fixture
def real_data() -> Path:
    """The folder of real images outside of the repository (see CONTRIBUTING); skips without it."""
    if "DVAE_TEST_DATA" not in os.environ:
        pytest.skip("DVAE_TEST_DATA is not set: it names the folder with the real test images")
    return Path(os.environ["DVAE_TEST_DATA"])
