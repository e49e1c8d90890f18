"""Network policies that hold, pods that are nobody in particular, a dashboard that asks for its token."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from tests.cluster.installation import DASHBOARD, HEAD, RELEASE, Installation
from tests.cluster.network import METADATA

_CONNECT = """
import concurrent.futures, socket, sys, time

def connect(name):
    host, port = name.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 4).close()
        return "reached"
    except OSError:
        return "not reached"

time.sleep(5)  # until the pod's address is known to those who judge its packets: before, it may go anywhere
with concurrent.futures.ThreadPoolExecutor() as pool:
    for name, told in zip(sys.argv[1:], pool.map(connect, sys.argv[1:])):
        print(name, told)
"""
METADATA_SERVICE = {"metadata", "metadata by TLS"}
REACHED = {  # by whom, what
    "head": {"dashboard", "gcs", "mlflow", "s3"},
    "worker": {"dashboard", "gcs", "mlflow", "s3"},
    "mlflow": {"s3", "postgres"},
    "retrain": {"dashboard", "mlflow", "s3"},
    "submitter": {"dashboard"},
    "test": {"dashboard", "mlflow"},
}


@pytest.fixture(scope="module")
def targets(place: Installation) -> Iterator[dict[str, str]]:
    """What there is to reach, by addresses that need no DNS; in a cluster of our own a metadata service as well."""
    (head,) = place.pods(HEAD)
    (mlflow,) = place.pods("app.kubernetes.io/component=mlflow")
    s3, database = urlsplit(place.beside.keys["AWS_ENDPOINT_URL"]), urlsplit(place.beside.database)
    there = {
        "dashboard": f"{head['status']['podIP']}:8265",
        "gcs": f"{head['status']['podIP']}:6379",
        "mlflow": f"{mlflow['status']['podIP']}:5000",
        "s3": f"{s3.hostname}:{s3.port}",
        "postgres": f"{database.hostname}:{database.port}",
    }
    with ExitStack() as stack:
        if place.cluster.node is not None:  # on another's node nobody can listen at that address
            for port in (80, 443):
                stack.enter_context(metadata_service(port))
            # At 443 heads reach the API server, whatever its address.
            there |= {"metadata": f"{METADATA}:80", "metadata by TLS": f"{METADATA}:443"}
        yield there


@contextmanager
def metadata_service(port: int) -> Iterator[None]:
    """Somebody who listens where clouds hand out a node's credentials."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/var/empty")
    with http.server.ThreadingHTTPServer((METADATA, port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def reached_from(place: Installation, targets: dict[str, str], namespace: str, labels: dict[str, str]) -> set[str]:
    """What a pod there, with these labels, gets a connection to."""
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "probe", "image": place.cluster.image, "imagePullPolicy": "IfNotPresent",
                "command": ["python", "-c", _CONNECT, *targets.values()],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }  # fmt: skip
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "labels": labels}, "spec": spec}
    ask = functools.partial(place.cluster.kubectl, "--namespace", namespace)
    ask("apply", "--filename", "-", given=yaml.safe_dump(pod))
    try:
        ask("wait", "pod/probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
        told = dict(line.split(" ", 1) for line in ask("logs", "probe").splitlines())
    finally:
        ask("delete", "pod", "probe", "--grace-period=0", "--force")
    return {name for name, address in targets.items() if told[address] == "reached"}


def labels_of(place: Installation, kind: str) -> dict[str, str]:
    """By which the chart's policies know such a pod."""
    if kind not in ("head", "worker"):
        names = {"name": "denoising-vae", "instance": RELEASE, "component": kind}
        return {f"app.kubernetes.io/{key}": value for key, value in names.items()}
    spec = json.loads(place.kubectl("get", "raycluster", RELEASE, "--output=json"))["spec"]
    group = spec["headGroupSpec"] if kind == "head" else spec["workerGroupSpecs"][0]
    labels: dict[str, str] = group["template"]["metadata"]["labels"]
    return labels


def test_a_stranger_in_the_namespace_reaches_nothing(place: Installation, targets: dict[str, str]):
    assert reached_from(place, targets, "dvae", {}) == set()


def test_a_stranger_elsewhere_reaches_nothing_of_ours(place: Installation, targets: dict[str, str]):
    """What lies beside the cluster and the metadata address are not ours to keep from another namespace."""
    expected = {"s3", "postgres", *METADATA_SERVICE} & targets.keys()
    assert reached_from(place, targets, "default", {}) == expected


@pytest.mark.parametrize("kind", REACHED)
def test_our_own_labels_reach_what_they_need_and_no_metadata(place: Installation, targets: dict[str, str], kind: str):
    assert reached_from(place, targets, "dvae", labels_of(place, kind)) == REACHED[kind]


def test_no_pod_runs_as_root(place: Installation):
    seen = 0
    for namespace in ("dvae", "kuberay-system"):
        listed = place.cluster.kubectl("--namespace", namespace, "get", "pods", "--output=json")
        for pod in json.loads(listed)["items"]:
            common = pod["spec"].get("securityContext", {})
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
                own = container.get("securityContext", {})
                where = (pod["metadata"]["name"], container["name"])
                assert own.get("runAsNonRoot", common.get("runAsNonRoot")) is True, where
                assert own.get("allowPrivilegeEscalation") is False, where
                seen += 1
    assert seen >= 4
    (head,) = place.pods(HEAD)
    assert place.kubectl("exec", head["metadata"]["name"], "--container=ray-head", "--", "id", "-u") == "10001\n"


@pytest.mark.parametrize(
    ("headers", "answers"), [({}, {401}), ({"Authorization": "Bearer wrong"}, {401, 403})], ids=["none", "wrong"]
)
def test_the_dashboard_wants_its_token(place: Installation, headers: dict[str, str], answers: set[int]):
    for path in ("/api/jobs/", "/api/v0/nodes", "/api/cluster_status"):
        assert requests.get(f"{DASHBOARD}{path}", headers=headers, timeout=20).status_code in answers, path
