"""The head's state in Redis: workers outlive a head, and a Redis that dies takes nothing with it."""

import time
from collections.abc import Iterator

import pytest

from tests.cluster.installation import HEAD, ROOT, WORKERS, Installation
from tests.cluster.work import disturbed, kill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def durable(place: Installation) -> Iterator[Installation]:
    """A release with fault tolerance of the GCS."""
    redis = place.beside.redis
    before = redis.keys()
    address = f"redis://{redis.host}:{redis.port}"
    place.write_values(
        head={"gcsFaultTolerance": {"enabled": True, "redisAddress": address, "existingSecret": "redis"}},
        # The next driver may wait for the dead one's lease, 60 s, which no worker shall take for idleness.
        autoscaler={"idleTimeoutSeconds": 300},
    )
    try:
        place.upgrade()
        yield place
    finally:
        place.begin_anew()  # KubeRay would leave its finalizer on a cluster that no longer has Redis
        assert redis.keys() == before, "KubeRay has not emptied Redis"


def test_the_workers_outlive_the_head(durable: Installation, undisturbed: dict[str, str]):
    before: list[str] = []

    def kill_the_head() -> None:
        before.extend(pod["metadata"]["uid"] for pod in durable.pods(WORKERS))
        kill(durable, HEAD)

    assert disturbed(durable, f"{ROOT}-durable", kill_the_head) == undisturbed
    assert before
    assert set(before) <= {pod["metadata"]["uid"] for pod in durable.pods(WORKERS)}


def test_redis_is_killed(durable: Installation, undisturbed: dict[str, str]):
    redis = durable.beside.redis

    def away() -> None:
        redis.kill()
        try:
            time.sleep(15)
        finally:
            redis.start()

    assert disturbed(durable, f"{ROOT}-redis", away) == undisturbed
