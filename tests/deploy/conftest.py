"""What the tests of `deploy` share: a platform of real servers beside a Ray head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.ceph import Ceph, act_as, make_bucket
from tests.support.mlflow_server import running_mlflow
from tests.support.ray_head import Head, running_head


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
