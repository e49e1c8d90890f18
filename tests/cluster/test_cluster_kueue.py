"""Clusters behind Kueue, short-lived ones and the standing one: admitted or waiting, and `deploy` says which."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from tests.cluster.addons import running_kueue
from tests.cluster.installation import NAMESPACE, ROOT, Installation
from tests.cluster.work import rayjob, start

pytestmark = pytest.mark.slow
QUEUE = "research"


@pytest.fixture(scope="module")
def kueue(place: Installation) -> Iterator[Installation]:
    """With a queue that has room for one job of this size, not for two."""
    with running_kueue(place.cluster.kubectl, place.cluster.node is not None):
        make_queue(place)
        yield place
        place.kubectl("delete", "rayjobs", "--all")
        place.kubectl("delete", "localqueue", QUEUE)
        place.cluster.kubectl("delete", "clusterqueue", QUEUE, "--timeout=60s")
        place.cluster.kubectl("delete", "resourceflavor", "any", "--timeout=60s")


def make_queue(place: Installation) -> None:
    objects = [
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "any"}},
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ClusterQueue", "metadata": {"name": QUEUE},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [{
                    "coveredResources": ["cpu", "memory", "ephemeral-storage"],
                    "flavors": [{"name": "any", "resources": [
                        {"name": "cpu", "nominalQuota": "700m"}, {"name": "memory", "nominalQuota": "12Gi"},
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


@contextmanager
def quota(place: Installation, cpu: str) -> Iterator[None]:
    """As long as it lasts, so many CPUs."""
    path = "/spec/resourceGroups/0/flavors/0/resources/0/nominalQuota"

    def put(value: str) -> None:
        patch = json.dumps([{"op": "replace", "path": path, "value": value}])
        place.cluster.kubectl("patch", "clusterqueue", QUEUE, "--type=json", "--patch", patch)

    put(cpu)
    try:
        yield
    finally:
        put("700m")


def queued(share: float) -> list[str]:
    """The first stage on a cluster of its own; each share of images for validation is other work."""
    sets = (f"data.validation_share={share}",)
    return rayjob(f"{ROOT}-kueue", "stage", "prepare", "quickstart", sets=sets, more=("--queue", QUEUE))


class Listener:
    """What such a process says while it waits, line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.said, self._news = process, list[str](), threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._news:
                self.said.append(line)
                self._news.notify_all()

    def line(self, words: str, seconds: float = 120) -> str:
        """The one with these words, as soon as it is said."""
        with self._news:
            heard = self._news.wait_for(lambda: any(words in line for line in self.said), seconds)
        assert heard, f"{words}: not in {self.said}"
        return next(line for line in self.said if words in line)


def test_admitted_when_quota_is_free_and_waiting_when_not(kueue: Installation):
    first, second = start(kueue, queued(0.2)), None
    try:
        kueue.wait(lambda: "Admitted" in conditions(kueue), "the first is not admitted", 60)
        second = start(kueue, queued(0.3))
        waiting = Listener(second)
        assert "insufficient unused quota for cpu" in waiting.line(f"queue {QUEUE}: waiting")
        for process in (first, second):
            assert process.stdout
            out = process.stdout.read()
            assert process.wait(600) == 0, out + kueue.state()
            assert "✓ prepare" in out
        assert waiting.line(f"queue {QUEUE}: admitted")
    finally:
        for begun in (first, second):
            if begun:
                begun.kill()


def conditions(place: Installation) -> set[str]:
    """Of all Workloads, those that hold."""
    workloads = json.loads(place.kubectl("get", "workloads", "--output=json"))["items"]
    found = [one for made in workloads for one in made.get("status", {}).get("conditions", [])]
    return {one["type"] for one in found if one["status"] == "True"}


def test_more_than_there_ever_is(kueue: Installation):
    with quota(kueue, "100m"):
        job = start(kueue, queued(0.4))
        try:
            assert "maximum capacity" in Listener(job).line(f"queue {QUEUE}: waiting")
        finally:
            job.kill()
            kueue.kubectl("delete", "rayjobs", "--all")


def test_the_standing_cluster_is_admitted_too(kueue: Installation):
    """With its workers from the beginning: nothing scales it."""
    # Kueue allows no other queue for a RayCluster that runs.
    kueue.begin_anew(kueue={"enabled": True, "queueName": QUEUE}, groups={"cpu": {"min": 1}})
    try:
        told = kueue.doctor()
        assert told.returncode == 0, told.stdout + told.stderr
        (line,) = [line for line in told.stdout.splitlines() if line[4:].startswith("queue")]
        assert f"LocalQueue {QUEUE}" in line
        assert "Admitted" in conditions(kueue)
    finally:
        kueue.begin_anew()
