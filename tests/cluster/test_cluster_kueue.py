"""Short-lived clusters behind Kueue: admitted when quota is free, waiting when not, and `deploy` says which."""

import json
import threading

import pytest
import yaml
from addons import start_kueue
from installation import NAMESPACE, ROOT, Installation
from work import done, ended, rayjob, start

pytestmark = pytest.mark.slow
QUEUE = "research"


@pytest.fixture(scope="module")
def kueue(place: Installation) -> Installation:
    """With a queue that has all that a job of this size wants."""
    start_kueue(place.cluster.kubectl, place.cluster.node is not None)
    objects = [
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "any"}},
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": QUEUE},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [{
                    "coveredResources": ["cpu", "memory", "ephemeral-storage"],
                    "flavors": [{"name": "any", "resources": [
                        {"name": "cpu", "nominalQuota": "2"}, {"name": "memory", "nominalQuota": "12Gi"},
                        {"name": "ephemeral-storage", "nominalQuota": "100Gi"},
                    ]}],
                }],
            },
        },
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue",
            "metadata": {"name": QUEUE, "namespace": NAMESPACE}, "spec": {"clusterQueue": QUEUE},
        },
    ]  # fmt: skip
    (place.folder / "queue.yaml").write_text(yaml.safe_dump_all(objects))
    apply = f"kubectl apply --filename {place.folder}/queue.yaml"
    place.wait(lambda: place.run(apply).returncode == 0, "Kueue's webhooks do not answer", 120)
    return place


def quota(place: Installation, cpu: str) -> None:
    path = "/spec/resourceGroups/0/flavors/0/resources/0/nominalQuota"
    patch = json.dumps([{"op": "replace", "path": path, "value": cpu}])
    place.cluster.kubectl("patch", "clusterqueue", QUEUE, "--type=json", "--patch", patch)


def test_doctor_knows_the_queue(kueue: Installation):
    told = kueue.bash("python -m deploy doctor --namespace dvae --root $ROOT --address http://localhost:8265")
    assert "Kueue" in told


def test_admitted_when_quota_is_free(kueue: Installation):
    told = done(kueue, rayjob(f"{ROOT}-kueue", "stage", "prepare", "quickstart", more=("--queue", QUEUE)))
    assert "✓ prepare" in told
    assert "waits" not in told


def test_waits_for_quota_and_says_so(kueue: Installation):
    quota(kueue, "300m")
    seed = ("data.validation_share=0.3",)  # other work than before
    job = start(kueue, rayjob(f"{ROOT}-kueue", "stage", "prepare", "quickstart", sets=seed, more=("--queue", QUEUE)))
    said: list[str] = []
    waits = threading.Event()

    def listen() -> None:
        assert job.stderr
        for line in job.stderr:
            said.append(line)
            if f"queue {QUEUE}: waits" in line:
                waits.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        assert waits.wait(120), said
        quota(kueue, "2")
        assert job.stdout
        out = job.stdout.read()
        assert job.wait(600) == 0, out + "".join(said)
        assert "✓ prepare" in out
    finally:
        job.kill()


def test_more_than_there_ever_is(kueue: Installation):
    quota(kueue, "100m")
    seed = ("data.validation_share=0.4",)
    job = start(kueue, rayjob(f"{ROOT}-kueue", "stage", "prepare", "quickstart", sets=seed, more=("--queue", QUEUE)))
    kueue.wait(
        lambda: "maximum capacity" in kueue.kubectl("get", "workloads", "--output=yaml"), "Kueue says nothing", 120
    )
    job.terminate()
    _, out, error = ended(job)
    assert "maximum capacity" in out + error
    kueue.kubectl("delete", "rayjobs", "--all")
    quota(kueue, "2")
