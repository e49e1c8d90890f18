"""Network policies that hold, pods that are nobody in particular, a dashboard that asks for its token."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import requests
import yaml
from installation import DASHBOARD, HEAD, RELEASE, Installation
from network import METADATA

_CONNECT = """
import socket, sys
for name in sys.argv[1:]:
    host, port = name.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 4).close()
        print(name, "reached")
    except OSError:
        print(name, "not reached")
"""


@pytest.fixture(scope="module")
def targets(place: Installation) -> dict[str, str]:
    """What there is to reach, by addresses that need no DNS."""
    (head,) = place.pods(HEAD)
    (mlflow,) = place.pods("app.kubernetes.io/component=mlflow")
    s3 = urlsplit(place.beside.keys["AWS_ENDPOINT_URL"])
    return {
        "dashboard": f"{head['status']['podIP']}:8265",
        "gcs": f"{head['status']['podIP']}:6379",
        "mlflow": f"{mlflow['status']['podIP']}:5000",
        "s3": f"{s3.hostname}:{s3.port}",
        "metadata": f"{METADATA}:80",
        "metadata by TLS": f"{METADATA}:443",  # at which heads reach the API server, whatever its address
    }


@pytest.fixture(scope="module")
def metadata_service(place: Installation) -> Iterator[None]:
    """Somebody who listens where clouds hand out a node's credentials."""
    if place.cluster.node is None:
        pytest.skip("the cluster's node is not ours: nobody can listen at that address")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/var/empty")
    with ExitStack() as stack:
        for port in (80, 443):
            server = stack.enter_context(http.server.ThreadingHTTPServer((METADATA, port), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        yield


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


def test_a_stranger_in_the_namespace_reaches_nothing(place: Installation, targets, metadata_service):
    assert reached_from(place, targets, "dvae", {}) == set()


def test_a_stranger_elsewhere_reaches_nothing_of_ours(place: Installation, targets, metadata_service):
    """S3 and the metadata address are not ours to keep from another namespace."""
    assert reached_from(place, targets, "default", {}) == {"s3", "metadata", "metadata by TLS"}


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_our_own_labels_reach_what_they_need_and_no_metadata(place: Installation, targets, metadata_service, kind: str):
    spec = json.loads(place.kubectl("get", "raycluster", RELEASE, "--output=json"))["spec"]
    group = spec["headGroupSpec"] if kind == "head" else spec["workerGroupSpecs"][0]
    labels = {**group["template"]["metadata"]["labels"], "ray.io/cluster": RELEASE, "ray.io/node-type": kind}
    reached = reached_from(place, targets, "dvae", labels)
    assert reached == {"dashboard", "gcs", "mlflow", "s3"}


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
