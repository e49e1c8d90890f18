"""Installing on a cluster as docs/operations.md says, by its own commands, and what it takes for given: an S3 server, a
Postgres and a Redis beside the cluster."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import yaml

from tests.cluster import addons
from tests.cluster.own import Cluster
from tests.cluster.programs import PROJECT
from tests.support.ceph import make_bucket, running_ceph
from tests.support.chart import values_of
from tests.support.groups import Group
from tests.support.operations import blocks
from tests.support.postgres import running_postgres
from tests.support.redis_server import Redis, running_redis

NAMESPACE, RELEASE = "dvae", "denoising-vae"
BUCKET, ROOT = "denoising-vae", "s3://denoising-vae/trial"
WORKERS, HEAD = "ray.io/node-type=worker", "ray.io/node-type=head"
DASHBOARD, MLFLOW = "http://localhost:8265", "http://localhost:5000"  # this side's ends of the document's forwards
_PASSWORD = "PASSWORD"  # as the document has it
_CHARTS = "https://ray-project.github.io/kuberay-helm/"


@dataclass(frozen=True)
class Beside:
    """What lies outside of the cluster and outlives it."""

    keys: dict[str, str]  # to S3, as a client's environment
    database: str  # URI
    redis: Redis


@contextmanager
def servers_beside(host: str, folder: Path) -> Iterator[Beside]:
    """At this machine's address `host`, which pods reach."""
    with (
        running_ceph(host) as ceph,
        running_postgres(host, _PASSWORD) as database,
        running_redis(folder, host, _PASSWORD) as redis,
    ):
        keys = {**ceph.add_user("dvae"), "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
        make_bucket(keys, BUCKET)
        yield Beside(keys, database, redis)


class Installation:
    """One release of the chart, and a shell of whoever looks after it."""

    def __init__(
        self, cluster: Cluster, beside: Beside, folder: Path, namespace: str = NAMESPACE, root: str = ROOT
    ) -> None:
        self.cluster, self.beside, self.folder, self.namespace, self.root = cluster, beside, folder, namespace, root
        self.values = folder / "values.yaml"
        self.seconds = 0.0  # that `helm install` and `helm test` have taken
        self.environment = {
            **{name: value for name, value in cluster.environment.items() if not name.startswith(("AWS_", "RAY_"))},
            **beside.keys,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}",
            "HOME": str(folder),  # Helm's repositories and the like
            "ROOT": root,
        }
        self.write_values()

    def write_values(self, **changes: Any) -> None:
        """Those of a trial, with this cluster's places; `changes` go over whole sections of them, key by key."""
        self.values.write_text(yaml.safe_dump(_merged(self._values(), changes)))

    def bash(self, code: str, timeout: float = 900) -> str:
        """Its standard output. AssertionError, with all it has said, when it fails."""
        done = self.run(code, timeout)
        assert done.returncode == 0, f"{code}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def run(self, code: str, timeout: float = 900) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], cwd=PROJECT, env=self.environment, capture_output=True,
            text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def document(self, section: str, beginning: str = "") -> str:
        """The block of that section, or the one of its blocks that has such a command; for the files of this place."""
        found = [
            block.code
            for block in blocks()
            if block.section == section and block.language == "bash"
            if re.search(rf"^{re.escape(beginning)}", block.code, re.MULTILINE)
        ]
        assert len(found) == 1, f"{section!r} has {len(found)} blocks with {beginning!r}"
        return found[0].replace("--values values.yaml", f"--values {self.values}")

    def kubectl(self, *words: str, given: str | None = None) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *words, given=given)

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Those that match and are not on their way out, the oldest first."""
        listed = yaml.safe_load(self.kubectl("get", "pods", "--selector", selector, "--output", "json"))["items"]
        alive = [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]
        return sorted(alive, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def wait(self, ready: Callable[[], bool], otherwise: str, seconds: float = 300) -> None:
        """Ask every second until it is so. AssertionError, with the pods, past the time."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise AssertionError(f"{otherwise} after {seconds:.0f} s\n{self.state()}")
            time.sleep(1)

    def wait_until_reached(self, seconds: float = 300) -> None:
        """Until dashboard and MLflow answer at this side's ends of the forwards."""
        self.wait(_all_answer, "dashboard and MLflow are not reached", seconds)

    def apply(self) -> None:
        """Have the release be as the values are written now, and wait for nothing."""
        self.bash(f"helm upgrade {RELEASE} helm/denoising-vae -n {NAMESPACE} --values {self.values} --force-conflicts")

    def upgrade(self) -> None:
        """By the document's commands to the values as they are written now, which recreate the cluster."""
        self.bash(self.document("Upgrade", "helm upgrade denoising-vae"))
        self.wait_until_reached()

    def begin_anew(self, **changes: Any) -> None:
        """To these values where the RayCluster may not be changed, but has to be deleted first."""
        self.kubectl("delete", "raycluster", RELEASE, "--timeout=180s")
        self.kubectl("wait", "--for=delete", "pod", f"--selector=ray.io/cluster={RELEASE}", "--timeout=180s")
        self.write_values(**changes)
        self.apply()
        self.kubectl("wait", "--for=condition=HeadPodReady", f"raycluster/{RELEASE}", "--timeout=300s")
        self.wait_until_reached()

    def doctor(self) -> "subprocess.CompletedProcess[str]":
        """What the document's command says."""
        (command,) = [line for line in self.document("5. Doctor").splitlines() if "deploy doctor" in line]
        return self.run(command)

    def state(self) -> str:
        """What there is, for whoever has to find out why something failed."""
        look = f"kubectl --namespace {self.namespace} get"
        found = self.run(
            f"{look} pods,rayclusters,rayjobs --output=wide; {look} events --sort-by=.lastTimestamp | tail -25"
        )
        return found.stdout + found.stderr

    def _values(self) -> dict[str, Any]:
        host, values = self.cluster.host, values_of("trial")
        repository, _, tag = self.cluster.image.rpartition(":")
        s3, database = urlsplit(self.beside.keys["AWS_ENDPOINT_URL"]), urlsplit(self.beside.database)
        there = {"cidrs": [f"{host}/32"]}
        return _merged(
            values,
            {
                "image": {"repository": repository, "tag": tag},
                "site": {"root": self.root},
                "s3": {
                    "endpoint": self.beside.keys["AWS_ENDPOINT_URL"],
                    "env": {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"},
                },
                # Room for two clusters of two workers on two cores; each worker counts as one CPU of Ray's.
                "head": {"resources": {"cpu": "150m", "memory": "3Gi"}, "shm": "512Mi"},
                "autoscaler": {"idleTimeoutSeconds": 60, "resources": {"cpu": "50m", "memory": "512Mi"}},
                "groups": {
                    "cpu": {
                        "max": 2,
                        "resources": {"cpu": "300m", "memory": "4Gi"},
                        "shm": "1Gi",
                        "terminationGracePeriodSeconds": 30,  # far less than the tests' trainings have left then
                    }
                },
                "mlflow": {
                    "resources": {"cpu": "100m", "memory": "2Gi"},
                    "database": {"existingSecret": "mlflow-database"},
                    "basicAuth": {"enabled": True, "existingSecret": "mlflow-users"},
                },
                "networkPolicy": {
                    "s3": {**there, "namespaceSelector": None, "ports": [s3.port]},
                    "postgres": {**there, "port": database.port},
                    "redis": {**there, "port": self.beside.redis.port},
                },
                "rayjob": {"ttlSecondsAfterFinished": 5, "resources": {"cpu": "50m", "memory": "512Mi"}},
                "retrain": {"suspend": True, "resources": {"cpu": "50m"}},
            },
        )


@contextmanager
def installed(cluster: Cluster, beside: Beside, folder: Path) -> Iterator[Installation]:
    """Operator, Secrets and chart, by the document's commands; ready. Taken away again afterwards."""
    place = Installation(cluster, beside, folder)
    with ExitStack() as stack:
        stack.callback(remove, place)
        install_operator(place, stack)
        make_secrets(place)
        begin = time.monotonic()
        place.bash(place.document("4. Chart"), timeout=1200)
        place.seconds = time.monotonic() - begin
        yield place


def install_operator(place: Installation, stack: ExitStack) -> None:
    code = place.document("1. KubeRay")
    if place.cluster.image.startswith("localhost/"):  # no way to the web: a repository of our own
        charts = place.folder / "charts"
        charts.mkdir()
        helm = place.bash("command -v helm").strip()
        url = stack.enter_context(addons.operator_repository(place.cluster.kubectl, helm, charts))
        assert _CHARTS in code
        code = code.replace(_CHARTS, url)
    place.bash(code)


def make_secrets(place: Installation) -> None:
    """Namespace and all Secrets that the document makes. Its `postgres.data` leads to the one beside the cluster."""
    _name_database(place)
    for block in blocks():
        if block.section == "2. Namespace and Secrets" and block.language == "bash":
            place.bash(block.code)


def remove(place: Installation) -> None:
    for code in (
        f"helm uninstall {RELEASE} --namespace {NAMESPACE} --ignore-not-found",
        f"kubectl delete namespace {NAMESPACE} data --ignore-not-found --timeout=120s",
        "helm uninstall kuberay-operator --namespace kuberay-system --ignore-not-found",
    ):
        done = place.run(code)
        if done.returncode != 0:
            print(f"{code}: {done.stderr}")


@contextmanager
def forwarded(place: Installation) -> Iterator[dict[str, str]]:
    """The document's two forwards, made again when a pod at their ends has gone; what a client needs to use them."""
    with ExitStack() as stack:
        for line in place.document("5. Doctor").splitlines():
            if "port-forward" in line:
                code = f"while true; do {line.removesuffix('&')}; sleep 1; done"
                log = place.folder / f"forward-{line.split()[-2]}.log"
                group = Group(["bash", "-c", code], log, place.environment)
                stack.callback(group.end)
        place.wait_until_reached(60)
        exports = [line for line in place.document("5. Doctor").splitlines() if line.startswith("export ")]
        names = re.findall(r"\b([A-Z_]+)=", "\n".join(exports))
        told = place.bash("\n".join([*exports, *(f'echo "${name}"' for name in names)])).splitlines()
        yield dict(zip(names, told, strict=True))


def _all_answer() -> bool:
    try:
        answers = [requests.get(url, timeout=5) for url in (DASHBOARD, f"{MLFLOW}/health")]
    except requests.RequestException:
        return False
    return all(answer.status_code < 500 for answer in answers)


def _name_database(place: Installation) -> None:
    port = urlsplit(place.beside.database).port
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "postgres", "namespace": "data", "labels": {"kubernetes.io/service-name": "postgres"}},
        "ports": [{"port": port}], "endpoints": [{"addresses": [place.cluster.host]}],
    }  # fmt: skip
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres", "namespace": "data"},
        "spec": {"ports": [{"port": 5432}]},
    }  # fmt: skip
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "data"}}
    place.cluster.kubectl("apply", "--filename", "-", given=yaml.safe_dump_all([namespace, service, slice_]))


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Key by key; None takes a key away."""
    made = dict(under)
    for key, value in over.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict) and isinstance(made.get(key), dict):
            made[key] = _merged(made[key], value)
        else:
            made[key] = value
    return made
