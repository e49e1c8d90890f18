"""What dies while a tokenizer trains: the run goes on, and ends with the bits of one that nobody disturbed."""

import signal
import time

import pytest

from tests.cluster.installation import HEAD, RELEASE, ROOT, WORKERS, Installation
from tests.cluster.work import TRAINING, disturbed, encoded_shards, ended, keys, kill, start, submission

pytestmark = pytest.mark.slow


def test_a_worker_is_killed(place: Installation, undisturbed: dict[str, str]):
    assert disturbed(place, f"{ROOT}-worker", lambda: kill(place, WORKERS)) == undisturbed


def test_mlflow_is_killed(place: Installation, undisturbed: dict[str, str]):
    assert disturbed(place, f"{ROOT}-mlflow", lambda: kill(place, "app.kubernetes.io/component=mlflow")) == undisturbed
    place.kubectl("rollout", "status", f"deployment/{RELEASE}-mlflow", "--timeout=180s")


def test_the_head_is_killed(place: Installation, undisturbed: dict[str, str]):
    """Without fault tolerance of the GCS all of Ray goes with it; whoever waits submits again."""
    assert disturbed(place, f"{ROOT}-head", lambda: kill(place, HEAD)) == undisturbed


def test_the_kubelet_is_away_for_a_minute(place: Installation, undisturbed: dict[str, str]):
    node = place.cluster.node
    if node is None:
        pytest.skip("the cluster is not ours to break")

    def away() -> None:
        node.stop_program("kubelet", signal.SIGKILL)
        try:
            time.sleep(60)
            assert "NotReady" in place.bash("kubectl get nodes"), "nobody misses it"
        finally:
            node.start_program("kubelet")

    assert disturbed(place, f"{ROOT}-kubelet", away) == undisturbed
    place.wait_until_reached()


def test_a_worker_is_killed_while_it_encodes(place: Installation, undisturbed: dict[str, str]):
    """The latent store holds each key once."""
    root = f"{ROOT}-undisturbed"
    sets = (*TRAINING, "encode.shard_rows=4", "encode.batch_size=4")
    encoding = start(place, submission(root, "stage", "encode", "quickstart", sets=sets, attempts=5))
    place.wait(lambda: encoded_shards(root) >= 10, "it does not encode")
    kill(place, WORKERS)
    before = encoded_shards(root)
    code, out, error = ended(encoding)
    assert code == 0, f"{out}\n{error}\n{place.state()}"
    encoded = keys(root, "encode")
    assert sorted(encoded) == sorted(keys(root, "prepare", "shards/train-*.parquet"))
    assert 10 <= before < len(encoded) // 4, "it was in the middle when its workers died; four rows make a shard"
