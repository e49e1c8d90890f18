"""What the tests of `deploy` share: a Kubernetes API server, and a platform of real servers beside a Ray head."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer, binaries, running_api_server
from tests.support.ceph import Ceph, act_as, make_bucket
from tests.support.mlflow_server import running_mlflow
from tests.support.ray_head import Head, running_head


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """With KubeRay's CRDs. Tests keep apart by namespaces of their own; who stops it starts it again."""
    programs = binaries()
    if programs is None:
        pytest.skip("no etcd and kube-apiserver: `.ci/kubernetes-binaries build/kubernetes` builds them (needs Go)")
    if "DVAE_TEST_CRDS" not in os.environ:
        pytest.skip("DVAE_TEST_CRDS is not set: it names the folder with KubeRay's CRDs")
    with running_api_server(programs, Path(os.environ["DVAE_TEST_CRDS"]), tmp_path_factory.mktemp("kubernetes")) as up:
        yield up


@dataclass(frozen=True)
class Platform:
    """A Ray head that wants a token, MLflow on PostgreSQL, S3 by Ceph."""

    head: Head
    tracking: str  # MLflow's address
    environment: dict[str, str]  # what a submitter has: S3's and MLflow's address, keys and the token


@pytest.fixture(scope="session")
def platform_servers(
    tmp_path_factory: pytest.TempPathFactory, ceph: Ceph, database: Callable[[], str]
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    keys = {**ceph.add_user("dvae"), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    make_bucket(keys, "dvae")
    with running_mlflow(folder, database(), "s3://dvae/mlflow", **keys) as mlflow:
        place = {**keys, "MLFLOW_TRACKING_URI": mlflow.uri}
        with running_head(folder, place) as head:
            yield Platform(head, mlflow.uri, {**place, **head.environment})


@pytest.fixture
def platform(platform_servers: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """With this process as a submitter there."""
    act_as(monkeypatch, platform_servers.environment)
    return platform_servers
