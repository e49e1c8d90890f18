"""A node that is drained, as a spot node is before it goes: trainers save within the grace, and go on later."""

import re

import pytest

from tests.cluster.installation import HEAD, NAMESPACE, RELEASE, ROOT, WORKERS, Installation
from tests.cluster.work import TRAINING, disturbed
from tests.support.trained import checkpoints, steps

pytestmark = pytest.mark.slow


def node_of(place: Installation) -> str:
    return str(place.pods(HEAD)[0]["spec"]["nodeName"])


def test_saved_on_the_notice_and_the_same_bits_later(place: Installation, undisturbed: dict[str, str]):
    root = f"{ROOT}-drained"
    node = node_of(place)
    drain = f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data --pod-selector={WORKERS} --timeout=180s"
    there: list[int] = []

    def take_the_node_away() -> None:
        try:
            told = place.bash(drain)
            assert re.search(r"evict", told), told
            there.extend([steps(root), max(checkpoints(root))])
        finally:
            place.bash(f"kubectl uncordon {node}")

    sets = (*TRAINING, "tokenizer.checkpoint_every=399")
    assert disturbed(place, root, take_the_node_away, sets) == undisturbed
    made, saved = there
    assert 100 <= made < 399, "it was on its way when its node went"
    assert made - saved <= 30, "three lines: by its own rhythm there would be no checkpoint yet"


def test_head_and_mlflow_are_not_evicted(place: Installation):
    """Their budgets allow none, so a node with them does not drain by itself."""
    node = node_of(place)
    try:
        done = place.run(f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data --timeout=10s")
    finally:
        place.bash(f"kubectl uncordon {node}")
    assert done.returncode != 0
    assert "Cannot evict pod as it would violate the pod's disruption budget" in done.stderr
    assert place.pods(HEAD)
    assert place.pods("app.kubernetes.io/component=mlflow")


def test_the_head_goes_by_hand_and_comes_back(place: Installation):
    (before,) = place.pods(HEAD)
    place.bash(place.document("Grow and shrink pools", "kubectl -n dvae delete pod"))
    place.bash(f"kubectl -n {NAMESPACE} wait --for=condition=HeadPodReady raycluster/{RELEASE} --timeout=5m")
    place.wait_until_reached()
    (after,) = place.pods(HEAD)
    assert after["metadata"]["name"] != before["metadata"]["name"]
