"""Workers come when work asks for them, and go when they idle; groups with GPUs by the GPUs of the nodes."""

from typing import Any

import pytest

from tests.cluster.installation import HEAD, NAMESPACE, RELEASE, ROOT, WORKERS, Installation
from tests.cluster.work import TRAINING, done, ended, start, submission

pytestmark = pytest.mark.slow


def test_from_none_to_two_and_back(place: Installation):
    place.wait(lambda: not place.pods(WORKERS), "workers stay though they idle")
    root = f"{ROOT}-scaling"
    done(place, submission(root, "stage", "prepare", "quickstart", sets=TRAINING))
    sets = (*TRAINING, "cluster.workers=2")
    training = start(place, submission(root, "stage", "train-tokenizer", "quickstart", sets=sets))
    place.wait(lambda: len([pod for pod in place.pods(WORKERS) if ready(pod)]) == 2, "there are no two workers")
    code, out, error = ended(training)
    assert code == 0, out + error
    place.wait(lambda: not place.pods(WORKERS), "workers stay though they idle")


def test_a_pool_may_grow_without_a_restart(place: Installation):
    (before,) = place.pods(HEAD)
    grow = place.document("Grow and shrink pools", "helm upgrade denoising-vae")
    assert "groups.gpu-sit.max=16" in grow
    try:
        place.bash(grow.replace("groups.gpu-sit.max=16", "groups.cpu.max=3"))
        group = "jsonpath={.spec.workerGroupSpecs[?(@.groupName=='cpu')].maxReplicas}"
        assert place.kubectl("get", "raycluster", RELEASE, f"--output={group}") == "3"
        root = f"{ROOT}-scaling"
        done(place, submission(root, "stage", "prepare", "quickstart", sets=TRAINING))
        sets = (*TRAINING, "cluster.workers=3", "tokenizer.steps=20", "tokenizer.batch_size=48")
        training = start(place, submission(root, "stage", "train-tokenizer", "quickstart", sets=sets))
        place.wait(lambda: len([pod for pod in place.pods(WORKERS) if ready(pod)]) == 3, "there are no three workers")
        code, out, error = ended(training)
        assert code == 0, out + error
    finally:
        place.bash(f"helm rollback {RELEASE} --namespace {NAMESPACE} --force-conflicts")
    (after,) = place.pods(HEAD)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
