"""What tests of every floor share: an S3 server that speaks real HTTP, and roots to store under."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a moto server that lives as long as the tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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
