"""`deploy rayjob` against a real API server; the test plays the operator, by writing statuses."""

import http.server
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest

from deploy import rayjob
from deploy.submit import stage_work
from tests.support import PROJECT
from tests.support.api_server import ApiServer
from tests.support.chart import Object, kinds, named
from tests.support.groups import free_port
from tests.support.rayjobs import chart, job_options, template


class Place:
    """A namespace with the chart's RayJob template in it, and the test as its operator."""

    def __init__(self, server: ApiServer, root: Path, case: str = "trial", user: str = "admin") -> None:
        self.server, self.root, self.user = server, root, user
        self.name = server.namespace()
        self.objects = kubernetes.client.CustomObjectsApi(server.client())
        self.core = kubernetes.client.CoreV1Api(server.client())
        self.core.create_namespaced_config_map(self.name, named(chart(case), "ConfigMap", "-rayjob"))

    def start(self, *more: str, stage: str = "prepare", user: str | None = None) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "deploy", "rayjob", "stage", stage, "quickstart"]
        command += ["--root", str(self.root), "--namespace", self.name, *more]
        environment = {**os.environ, "KUBECONFIG": str(self.server.kubeconfig(user or self.user))}
        return subprocess.Popen(
            command, cwd=PROJECT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def jobs(self) -> list[Object]:
        made = self.objects.list_namespaced_custom_object("ray.io", "v1", self.name, "rayjobs")["items"]
        return sorted(made, key=lambda job: job["metadata"]["name"])

    def wait_for(self, count: int = 1) -> Object:
        for _ in range(150):
            if len(self.jobs()) >= count:
                return self.jobs()[-1]
            time.sleep(0.1)
        raise AssertionError("no RayJob was created")

    def tell(self, job: Object, state: str, ray: str = "", **more: Any) -> None:
        name = job["metadata"]["name"]
        status = {"jobDeploymentStatus": state, "jobStatus": ray, "jobId": f"{name}-abcde",
                  "rayClusterName": f"{name}-fghij", **more}  # fmt: skip
        self.objects.patch_namespaced_custom_object_status(
            "ray.io", "v1", self.name, "rayjobs", name, {"status": status}
        )


@pytest.fixture
def place(api_server: ApiServer, tmp_path: Path) -> Place:
    return Place(api_server, tmp_path / "root")


def line_with(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stderr
    seen = []
    while line := process.stderr.readline():
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"'{text}' was not said: {seen}")


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, error = process.communicate(timeout=90)
    return process.returncode, out, error


FAILED = "Job entrypoint command failed with exit code 7, last available logs (truncated to 20,000 chars):\nerror: no"


def test_a_job_from_beginning_to_end(place):
    process = place.start()
    job = place.wait_for()
    name = job["metadata"]["name"]
    assert line_with(process, "created").strip() == f"created {name} in {place.name}"
    place.tell(job, "Initializing")
    line_with(process, "initializing")
    place.tell(job, "Running", "RUNNING")
    line_with(process, "running running")
    place.tell(job, "Complete", "SUCCEEDED", succeeded=1)
    code, _, error = ended(process)
    assert code == 0, error
    assert "complete succeeded" in error
    assert place.jobs() == [], "it is taken away with its cluster"


@pytest.mark.slow
def test_the_jobs_own_exit_code_and_another_attempt_by_hand(place):
    process = place.start()
    first = place.wait_for()
    place.tell(first, "Failed", "FAILED", reason="AppFailed", message=FAILED, failed=1)
    code, _, error = ended(process)
    assert code == 7, error
    assert [job["metadata"]["name"] for job in place.jobs()] == [first["metadata"]["name"]], "to be looked at"
    process = place.start("--delete", "always")
    second = place.wait_for(2)
    assert second["metadata"]["name"] == first["metadata"]["name"][:-1] + "2"
    place.tell(second, "Failed", "FAILED", reason="SubmissionFailed", message="the submitter gave up", failed=1)
    code, _, error = ended(process)
    assert (code, error.splitlines()[-1].startswith("error: ")) == (75, True)
    assert "SubmissionFailed: the submitter gave up" in error
    assert len(place.jobs()) == 1


def test_attempts_are_told_while_they_last(place):
    process = place.start("--attempts", "3", "--delete", "never")
    job = place.wait_for()
    assert job["spec"]["backoffLimit"] == 2
    place.tell(job, "Retrying", "FAILED", reason="AppFailed", message="Ray head pod not found.", failed=1)
    assert "AppFailed: Ray head pod not found." in line_with(process, "retrying")
    place.tell(job, "Running", "RUNNING", reason="", message="", failed=1)
    line_with(process, "running running after 1 failed attempts")
    place.tell(job, "Complete", "STOPPED", failed=1)
    assert ended(process)[0] == 130
    assert len(place.jobs()) == 1


@pytest.mark.slow
def test_detached_and_attached(place):
    first = place.start()
    job = place.wait_for()
    line_with(first, "created")
    first.send_signal(signal.SIGINT)
    code, _, error = ended(first)
    assert code == 130
    assert f"detached: {job['metadata']['name']} keeps running at {place.server.url} in {place.name}" in error
    assert f"`kubectl -n {place.name} delete rayjob {job['metadata']['name']}` stops it" in error
    second = place.start()
    line_with(second, f"attached to {job['metadata']['name']}")
    place.tell(job, "Complete", "SUCCEEDED")
    assert ended(second)[0] == 0


@pytest.mark.slow
def test_an_api_server_that_goes_away_in_mid_watch(place):
    process = place.start()
    job = place.wait_for()
    place.tell(job, "Running", "RUNNING")
    line_with(process, "running")
    place.server.stop()
    try:
        assert place.server.url in line_with(process, "retrying for up to 600 s")
    finally:
        place.server.start()
    place.tell(job, "Complete", "SUCCEEDED")
    assert ended(process)[0] == 0


@pytest.mark.slow
def test_a_version_that_is_too_old_to_watch_from(place):
    """410 Gone, as after minutes in which the API server has forgotten."""
    process = place.start()
    job = place.wait_for()
    place.tell(job, "Initializing")
    line_with(process, "initializing")
    process.send_signal(signal.SIGSTOP)
    place.tell(job, "Running", "RUNNING")
    place.server.compact()
    process.send_signal(signal.SIGCONT)
    place.tell(job, "Complete", "SUCCEEDED")
    assert ended(process)[0] == 0


def test_a_watch_from_before_a_compaction_begins_anew(place, monkeypatch):
    from deploy.kube import Kube

    monkeypatch.setenv("KUBECONFIG", str(place.server.kubeconfig()))
    kube = Kube(place.name)
    assert kube.create_rayjob(
        rayjob.render(template(), stage_work("prepare", "quickstart", None, "/r"), job_options(), 1)
    )
    old = place.wait_for()["metadata"]["resourceVersion"]
    place.server.compact()
    assert list(kube._events(place.jobs()[0]["metadata"]["name"], old)) == [], "410 is an end, not an error"
    assert next(kube.watch_rayjob(place.jobs()[0]["metadata"]["name"], print))


def test_deleted_under_our_eyes(place):
    process = place.start()
    job = place.wait_for()
    line_with(process, "created")
    place.objects.delete_namespaced_custom_object("ray.io", "v1", place.name, "rayjobs", job["metadata"]["name"])
    code, _, error = ended(process)
    assert code == 75
    assert "was deleted before it ended" in error


def test_what_kuberay_refuses(place):
    process = place.start()
    place.tell(place.wait_for(), "ValidationFailed", reason="ValidationFailed", message="The RayJob spec is invalid: x")
    code, _, error = ended(process)
    assert code == 76
    assert "KubeRay rejected" in error
    assert "The RayJob spec is invalid: x" in error


def put_pod(place: Place, name: str, labels: dict[str, str], status: Object, node: str | None = None) -> None:
    spec = {"containers": [{"name": "c", "image": "i"}], **({"nodeName": node} if node else {})}
    place.core.create_namespaced_pod(place.name, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    place.core.patch_namespaced_pod_status(name, place.name, {"status": status})


@pytest.mark.slow
def test_what_keeps_it_from_starting_is_said(place):
    """An image that cannot be pulled, then a pod that no node takes."""
    process = place.start()
    job = place.wait_for()
    labels = {"ray.io/cluster": f"{job['metadata']['name']}-fghij"}
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "i"'}
    put_pod(place, "head", labels, {"containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": {"waiting": waiting}}
    ]})  # fmt: skip
    place.tell(job, "Initializing")
    assert "ImagePullBackOff: Back-off pulling image" in line_with(process, "pod head")
    place.core.delete_namespaced_pod("head", place.name, grace_period_seconds=0)
    put_pod(place, "worker", labels, {"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
         "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}
    ]})  # fmt: skip
    assert "3 Insufficient nvidia.com/gpu" in line_with(process, "cannot be scheduled")
    place.tell(job, "Complete", "SUCCEEDED")
    assert ended(process)[0] == 0


WORKLOADS = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "workloads.kueue.x-k8s.io",
                 "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in of a test"}},
    "spec": {
        "group": "kueue.x-k8s.io", "scope": "Namespaced",
        "names": {"plural": "workloads", "singular": "workload", "kind": "Workload"},
        "versions": [{"name": "v1beta1", "served": True, "storage": True, "schema": {
            "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}],
    },
}  # fmt: skip


@pytest.mark.slow
def test_a_queue_is_quoted(place):
    process = place.start("--queue", "research")
    job = place.wait_for()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert "Kueue is not installed in this cluster" in line_with(process, "queue research")
    kubernetes.client.ApiextensionsV1Api(place.server.client()).create_custom_resource_definition(WORKLOADS)
    why = "couldn't assign flavors to pod set cpu: insufficient unused quota for cpu in flavor f, 2 more needed"
    load = {
        "apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload",
        "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}},
        "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": why}]},
    }  # fmt: skip
    for _ in range(100):
        try:
            place.objects.create_namespaced_custom_object("kueue.x-k8s.io", "v1beta1", place.name, "workloads", load)
            break
        except kubernetes.client.ApiException:  # the definition is not served yet
            time.sleep(0.1)
    place.tell(job, "Suspended")
    assert why in line_with(process, "queue research: waiting")
    load["status"]["conditions"][0].update(status="True", message="Quota reserved")  # type: ignore[index]
    place.objects.patch_namespaced_custom_object("kueue.x-k8s.io", "v1beta1", place.name, "workloads", "w", load)
    place.tell(job, "Suspending")
    line_with(process, "queue research: admitted")
    place.tell(job, "Complete", "SUCCEEDED")
    assert ended(process)[0] == 0


@pytest.mark.slow
def test_the_charts_role_is_enough_and_no_more(place):
    code, _, error = ended(place.start(user="alice"))
    assert code == 77
    assert 'User "alice" cannot list resource "configmaps"' in error
    assert "rbac.submitters" in error
    objects = chart(rbac={"submitters": [{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}]})
    api = kubernetes.client.RbacAuthorizationV1Api(place.server.client())
    api.create_namespaced_role(place.name, kinds(objects, "Role")[0])
    api.create_namespaced_role_binding(place.name, kinds(objects, "RoleBinding")[0])
    process = place.start(user="alice")
    job = place.wait_for()
    place.tell(job, "Initializing")
    line_with(process, "initializing")
    place.tell(job, "Complete", "SUCCEEDED")
    code, _, error = ended(process)
    assert (code, place.jobs()) == (0, []), error
    alice = kubernetes.client.CoreV1Api(place.server.client("alice"))
    for forbidden in (alice.list_namespaced_secret, alice.list_namespaced_service):
        with pytest.raises(kubernetes.client.ApiException, match="403"):
            forbidden(place.name)


class Kubelet(http.server.BaseHTTPRequestHandler):
    """Gives a pod's log, as the API server asks a node's kubelet for it: each time more, then cut; in the end whole."""

    protocol_version = "HTTP/1.1"
    texts = ("✓ prep", "✓ prepare   0", "✓ prepare   0.1 s\n")
    asked = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.path.startswith("/containerLogs/"):
            text = self.texts[min(self.asked, 2)].encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            if self.asked != 1:  # without it, the stream is broken off
                self.wfile.write(b"0\r\n\r\n")
            type(self).asked += 1
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def node(api_server: ApiServer) -> Iterator[str]:
    """A node whose kubelet only knows logs."""
    port = free_port()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Kubelet)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates = api_server._certificates
    context.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")
    Kubelet.asked = 0
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    core = kubernetes.client.CoreV1Api(api_server.client())
    core.create_node({"metadata": {"name": f"node-{port}"}})
    status = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
              "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}  # fmt: skip
    core.patch_node_status(f"node-{port}", {"status": status})
    yield f"node-{port}"
    core.delete_node(f"node-{port}")
    server.shutdown()


@pytest.mark.slow
def test_what_the_job_prints_is_printed_once(place, node):
    """Though the log is cut in its middle, as by a kubelet or an API server that is replaced."""
    process = place.start()
    job = place.wait_for()
    labels = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    put_pod(place, "submitter", labels, {"phase": "Running"}, node)
    place.tell(job, "Running", "RUNNING")
    line_with(process, "running running")
    deadline = time.monotonic() + 60
    while Kubelet.asked < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    place.tell(job, "Complete", "SUCCEEDED")
    code, out, error = ended(process)
    assert code == 0, error
    assert Kubelet.asked >= 3
    assert out == "✓ prepare   0.1 s\n"


@pytest.mark.slow
def test_a_log_that_may_not_be_read_is_said_once(place, tmp_path):
    """And changes nothing of the rest."""
    for verbs, group, resources in (
        (["create", "get", "list", "watch", "delete"], "ray.io", ["rayjobs"]),
        (["list"], "", ["configmaps", "pods"]),
    ):
        place.server.allow("bob", place.name, verbs, group, resources)
    process = place.start(user="bob")
    job = place.wait_for()
    put_pod(place, "submitter", {"batch.kubernetes.io/job-name": job["metadata"]["name"]}, {"phase": "Running"})
    place.tell(job, "Running", "RUNNING")
    assert "pods/log" in line_with(process, "cannot read the job's log")
    place.tell(job, "Complete", "SUCCEEDED")
    assert ended(process)[0] == 0
