"""An S3 server behind a proxy that spoils requests: moto, and a real one (Ceph)."""

import time
import uuid
from collections.abc import Iterator

import pytest

from pipeline.storage import s3
from tests.support.ceph import act_as, s3_servers
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.spoiled_requests import KEYS


@pytest.fixture(params=s3_servers("moto"))
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of an S3 server that has the bucket `tests`; the environment leads through it."""
    if request.param == "ceph":
        environment = request.getfixturevalue("ceph_owner")
        upstream = environment["AWS_ENDPOINT_URL"]
    else:
        upstream, environment = request.getfixturevalue("s3_endpoint"), KEYS
    with fault_proxy(upstream) as made:
        act_as(monkeypatch, {**environment, "AWS_ENDPOINT_URL": made.url})
        s3.S3Storage("tests", "").client.create_bucket(Bucket="tests")
        yield made


@pytest.fixture
def root(proxy: FaultProxy) -> str:
    return f"s3://tests/{uuid.uuid4().hex}"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are short."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.005)))
