"""`deploy doctor` against a real API server, S3 and Ray: all green where everything is there, then one thing at a time
taken away."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest

from deploy import doctor
from deploy.doctor_kubernetes import nodes
from deploy.errors import ConnectError, DeniedError
from deploy.findings import CheckFailedError, Finding, run_checks
from deploy.kube import Kube
from pipeline.config.loading import load_config
from pipeline.storage.s3 import _session, _settings
from tests.support import PROJECT
from tests.support.api_server import ApiServer
from tests.support.chart import kinds, named, render, values_of

VALUES = values_of("gpu-production") | {
    "groupDefaults": {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}],
                      "mirror": {"storageClassName": "fast"}},
    "groups": {"cpu": {"nodeSelector": {"pool": "cpu"}, "tolerations": []}},
}  # fmt: skip
OPERATOR = {
    "metadata": {"name": "kuberay-operator", "namespace": "kuberay-system",
                 "labels": {"app.kubernetes.io/name": "kuberay-operator"}},
    "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "o", "image": "quay.io/kuberay/operator:v1.6.2"}]}}},
}  # fmt: skip
SECRETS = {
    "ray-token": ["auth_token"], "redis": ["redis-password"], "mlflow-database": ["uri"],
    "mlflow-users": ["admin-username", "admin-password", "flask-secret", "username", "password"],
}  # fmt: skip


class World:
    """What an installed release leaves in a namespace, statuses included."""

    def __init__(self, server: ApiServer) -> None:
        self.server, self.name = server, server.namespace()
        client = server.client()
        self.core, self.apps = kubernetes.client.CoreV1Api(client), kubernetes.client.AppsV1Api(client)
        self.objects, self.storage = kubernetes.client.CustomObjectsApi(client), kubernetes.client.StorageV1Api(client)
        rendered = render(VALUES)
        self.core.create_namespaced_config_map(self.name, named(rendered, "ConfigMap", "-rayjob"))
        deployment = kinds(rendered, "Deployment")[0]
        deployment["metadata"]["namespace"] = self.name
        self.apps.create_namespaced_deployment(self.name, deployment)
        for name, keys in SECRETS.items():
            self.put_secret(name, keys)
        cluster = kinds(rendered, "RayCluster")[0]
        cluster["metadata"]["namespace"] = self.name
        self.objects.create_namespaced_custom_object("ray.io", "v1", self.name, "rayclusters", cluster)
        self.tell_cluster("True", "")

    def put_secret(self, name: str, keys: list[str]) -> None:
        self.core.create_namespaced_secret(
            self.name, {"metadata": {"name": name}, "stringData": dict.fromkeys(keys, "x")}
        )

    def tell_cluster(self, ready: str, message: str) -> None:
        condition = {"type": "HeadPodReady", "status": ready, "reason": "R", "message": message,
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip
        self.objects.patch_namespaced_custom_object_status(
            "ray.io", "v1", self.name, "rayclusters", "r-denoising-vae", {"status": {"conditions": [condition]}}
        )

    def look(self, root: str, on_demand: bool = False) -> dict[str, Finding]:
        os.environ["KUBECONFIG"] = str(self.server.kubeconfig())
        config = load_config("quickstart", None, root)
        found = run_checks(doctor.checks(Kube(self.name), None, config, None, on_demand))
        return {one.what: one for one in found}


def put_node(core: Any, name: str, labels: dict[str, str], gpus: int) -> None:
    taints = [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}] if gpus else []
    core.create_node({"metadata": {"name": name, "labels": labels}})
    core.patch_node(name, {"spec": {"taints": taints}})  # admission has tainted it as not ready
    capacity = {"cpu": "64", "memory": "512Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    status = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": capacity, "capacity": capacity}
    core.patch_node_status(name, {"status": status})


@pytest.fixture(scope="module")
def world(api_server: ApiServer) -> Iterator[World]:
    core = kubernetes.client.CoreV1Api(api_server.client())
    core.create_namespace({"metadata": {"name": "kuberay-system"}})
    apps = kubernetes.client.AppsV1Api(api_server.client())
    apps.create_namespaced_deployment("kuberay-system", OPERATOR)
    tell_operator(apps, 1)
    put_node(core, "cpu-node", {"pool": "cpu"}, 0)
    put_node(core, "gpu-node", {"pool": "gpu"}, 8)
    storage = kubernetes.client.StorageV1Api(api_server.client())
    storage.create_storage_class({"metadata": {"name": "fast"}, "provisioner": "example.com/none"})
    yield World(api_server)
    apps.delete_namespaced_deployment("kuberay-operator", "kuberay-system")
    for name in ("cpu-node", "gpu-node"):
        core.delete_node(name)


def tell_operator(apps: Any, available: int) -> None:
    status = {"replicas": 1, "availableReplicas": available, "readyReplicas": available}
    apps.patch_namespaced_deployment_status("kuberay-operator", "kuberay-system", {"status": status})


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", "")  # what `look` sets is put back
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def red(found: dict[str, Finding]) -> dict[str, Finding]:
    return {what: one for what, one in found.items() if one.good is False}


def test_all_green(world, s3_root):
    found = world.look(s3_root)
    assert red(found) == {}
    assert found["root"].good
    assert "v1.34" in found["Kubernetes"].text
    assert found["KubeRay's operator"].text == "v1.6.2, kuberay-system/kuberay-operator"
    assert found["Secrets"].text == "mlflow-database, mlflow-users, ray-token, redis"
    assert found["nodes for gpu-sit"].text == "1 of 2 nodes, with 1 nvidia.com/gpu or more"
    assert found["nodes for cpu"].text == "1 of 2 nodes"


@pytest.mark.slow
def test_the_command(world, s3_root):
    environment = {**os.environ, "KUBECONFIG": str(world.server.kubeconfig())}
    command = [sys.executable, "-m", "deploy", "doctor", "--root", s3_root, "--namespace", world.name]
    done = subprocess.run(command, cwd=PROJECT, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith(("ok ", "-  ")) for line in done.stdout.splitlines())
    command[-1] = "elsewhere"
    done = subprocess.run(command, cwd=PROJECT, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("no ")]
    assert "namespace elsewhere has no releases of the chart. Install helm/denoising-vae there" in line


def test_secrets_that_are_missing_or_lack_a_key(world, s3_root):
    world.core.delete_namespaced_secret("redis", world.name)
    (finding,) = red(world.look(s3_root)).values()
    assert finding.text == "Secret redis is missing"
    assert "create secret generic redis" in finding.hint
    world.put_secret("redis", ["password"])
    (finding,) = red(world.look(s3_root)).values()
    assert finding.text == "Secret redis has no key redis-password"
    world.core.delete_namespaced_secret("redis", world.name)
    world.put_secret("redis", SECRETS["redis"])
    assert red(world.look(s3_root)) == {}


def test_an_operator_that_is_too_old_away_or_watches_elsewhere(world, s3_root):
    def with_container(**container: Any) -> Finding:
        given = {"name": "o", "image": "quay.io/kuberay/operator:v1.6.2", "args": [], **container}
        world.apps.patch_namespaced_deployment(
            "kuberay-operator", "kuberay-system", {"spec": {"template": {"spec": {"containers": [given]}}}}
        )
        (finding,) = red(world.look(s3_root)).values()
        return finding

    assert "is v1.5.1, which is too old" in with_container(image="quay.io/kuberay/operator:v1.5.1").text
    for words in (["--watch-namespace=a,b"], ["--enable-leader-election", "-watch-namespace", "a,b"]):
        assert "does not watch the namespace" in with_container(args=words).text
    tell_operator(world.apps, 0)
    assert "has no ready pod" in with_container().text
    tell_operator(world.apps, 1)
    assert red(world.look(s3_root)) == {}


def test_slices_are_looked_for_by_their_own_name(world):
    """A node with whole GPUs has none of them."""
    sliced = render(VALUES | {"groupDefaults": {**VALUES["groupDefaults"], "gpuResource": "nvidia.com/mig-3g.20gb"}})
    groups = kinds(sliced, "RayCluster")[0]["spec"]["workerGroupSpecs"]
    (group,) = [one for one in groups if one["groupName"] == "gpu-sit"]
    os.environ["KUBECONFIG"] = str(world.server.kubeconfig())
    with pytest.raises(CheckFailedError, match=r"none of the 2 nodes has 1 nvidia.com/mig-3g.20gb"):
        nodes(Kube(world.name), group, False)
    world.core.patch_node_status("gpu-node", {"status": {"allocatable": {"nvidia.com/mig-3g.20gb": "4"}}})
    assert nodes(Kube(world.name), group, False) == "1 of 2 nodes, with 1 nvidia.com/mig-3g.20gb or more"


def test_a_gpu_group_without_gpus(world, s3_root):
    world.core.patch_node_status("gpu-node", {"status": {"allocatable": {"nvidia.com/gpu": "0"}}})
    found = red(world.look(s3_root))
    assert set(found) == {f"nodes for gpu-{pool}" for pool in ("tokenizer", "sit", "batch")}
    assert found["nodes for gpu-sit"].text == "none of the 2 nodes has 1 nvidia.com/gpu"
    assert "--nodes-on-demand" in found["nodes for gpu-sit"].hint
    assert red(world.look(s3_root, on_demand=True)) == {}
    world.core.patch_node_status("gpu-node", {"status": {"allocatable": {"nvidia.com/gpu": "8"}}})
    world.core.patch_node("gpu-node", {"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}})
    assert "accepts its pods" in red(world.look(s3_root))["nodes for gpu-sit"].text
    world.core.patch_node("gpu-node", {"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}})
    assert red(world.look(s3_root)) == {}


def test_a_storage_class_that_is_not_there(world, s3_root):
    world.storage.delete_storage_class("fast")
    (finding,) = red(world.look(s3_root)).values()
    assert finding.text == "storage class fast does not exist"
    world.storage.create_storage_class({"metadata": {"name": "fast"}, "provisioner": "example.com/none"})


def test_a_claim_that_is_bound_needs_no_class(world, s3_root):
    """A volume made by hand has the name of a class that there need not be."""
    labels = {"app.kubernetes.io/name": "denoising-vae", "app.kubernetes.io/instance": "r"}
    spec = {"storageClassName": "by-hand", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}  # fmt: skip
    world.core.create_namespaced_persistent_volume_claim(
        world.name, {"metadata": {"name": "mlflow", "labels": labels}, "spec": spec}
    )
    assert "storage class by-hand does not exist" in red(world.look(s3_root))["volumes"].text
    world.core.patch_namespaced_persistent_volume_claim_status("mlflow", world.name, {"status": {"phase": "Bound"}})
    found = world.look(s3_root)
    assert red(found) == {}
    assert found["volumes"].text.startswith("1 bound; storage class fast")
    world.core.delete_namespaced_persistent_volume_claim("mlflow", world.name)


def test_what_the_submitters_role_does_not_grant_is_an_administrators(world):
    os.environ["KUBECONFIG"] = str(world.server.kubeconfig("alice"))
    with pytest.raises(DeniedError, match="Ask an administrator of the cluster"):
        Kube(world.name).objects("/api/v1/nodes")
    with pytest.raises(DeniedError, match=r"Add yourself to the chart's rbac\.submitters"):
        Kube(world.name).objects(f"/api/v1/namespaces/{world.name}/pods")


def test_a_head_that_is_not_ready_and_why(world, s3_root):
    world.tell_cluster("False", "containers with unready status: [ray-head]")
    labels = {"app.kubernetes.io/name": "denoising-vae", "app.kubernetes.io/instance": "r"}
    spec = {"containers": [{"name": "ray-head", "image": "i"}]}
    world.core.create_namespaced_pod(world.name, {"metadata": {"name": "head", "labels": labels}, "spec": spec})
    waiting = {"reason": "ErrImagePull", "message": "not found"}
    world.core.patch_namespaced_pod_status("head", world.name, {"status": {"containerStatuses": [
        {"name": "ray-head", "image": "i", "imageID": "", "ready": False, "restartCount": 0,
         "state": {"waiting": waiting}}]}})  # fmt: skip
    found = red(world.look(s3_root))
    assert "containers with unready status" in found["Ray cluster"].text
    assert found["pods"].text == "pod head: ErrImagePull: not found"
    world.core.delete_namespaced_pod("head", world.name, grace_period_seconds=0)
    world.tell_cluster("True", "")
    assert red(world.look(s3_root)) == {}


def test_mlflows_pod_that_is_refused(world, s3_root):
    """By a quota: there is no pod then that could be stuck."""
    name = "r-denoising-vae-mlflow"
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                 "message": 'pods "r-denoising-vae-mlflow-1" is forbidden: exceeded quota: small'}  # fmt: skip
    world.apps.patch_namespaced_deployment_status(name, world.name, {"status": {"conditions": [condition]}})
    found = red(world.look(s3_root))
    world.apps.patch_namespaced_deployment_status(name, world.name, {"status": {"conditions": None}})
    assert list(found) == ["pods"]
    assert found["pods"].text.startswith(f"{name}: its pods cannot be created: ")
    assert found["pods"].text.endswith("exceeded quota: small")
    assert found["pods"].hint == "Raise the quota or limit, or request less."


def test_what_may_not_be_looked_at_is_red_and_the_rest_goes_on(world, s3_root, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(world.server.kubeconfig("bob")))
    config = load_config("quickstart", None, s3_root)
    found = {one.what: one for one in run_checks(doctor.checks(Kube(world.name), None, config, None, False))}
    assert found["root"].good
    assert found["Kubernetes"].good
    assert 'User "bob" cannot get resource "customresourcedefinitions"' in found["KubeRay's CRDs"].text


def test_without_a_kubernetes_the_place_is_looked_at(tmp_path):
    config = load_config("quickstart", None, str(tmp_path))
    found = {one.what: one for one in run_checks(doctor.checks(ConnectError("none"), None, config, None, False))}
    assert {what: one.good for what, one in found.items()} == {
        "root": True, "clock": None, "MLflow": True, "Ray": None, "Kubernetes": False
    }  # fmt: skip


# --- the place ---


def place(root: str, address: str | None = None) -> dict[str, Finding]:
    config = load_config("quickstart", None, root)
    found = run_checks(doctor.checks(ConnectError("none"), None, config, address, False))
    return {one.what: one for one in found}


@pytest.mark.parametrize(
    ("bucket", "what"), [("no-such-bucket-here", "NoSuchBucket"), ("tests", None)], ids=["no bucket", "a bucket"]
)
def test_buckets(s3_root, bucket, what):
    finding = place(f"s3://{bucket}/x")["root"]
    assert finding.good is (what is None)
    if what:
        assert what in finding.text
        assert "Create the bucket" in finding.hint


def test_a_place_that_only_this_machine_has(s3_root, monkeypatch):
    """As `submit` and `retrain` refuse it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = place("./runs")
    assert found["root"].good is False
    assert "is a folder on this machine" in found["root"].text
    assert not Path("runs/.doctor").exists()
    finding = place(s3_root)["MLflow"]
    assert finding.good is False
    assert finding.text == "the MLflow server is not configured"


def test_an_endpoint_where_nobody_is(s3_root, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    found = place(s3_root)
    assert found["root"].good is False
    assert "AWS_ENDPOINT_URL" in found["root"].hint
    assert found["clock"].good is False


def test_an_endpoint_that_a_file_names(s3_endpoint, monkeypatch, tmp_path):
    """~/.aws/config is as good as the environment."""
    (tmp_path / "config").write_text("[profile there]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:9\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "there")
    _settings.cache_clear()
    _session.cache_clear()
    try:
        assert "no S3 server answers at http://127.0.0.1:9" in place("s3://tests/x")["root"].text
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        _settings.cache_clear()
        _session.cache_clear()
        assert "nobody" in place("s3://tests/x")["root"].text
        assert "bug" not in place("s3://tests/x")["root"].hint
    finally:
        _settings.cache_clear()
        _session.cache_clear()


class Late(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("Date", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_clock_that_goes_wrong(s3_root, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Late)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    config = load_config("quickstart", None, s3_root)
    finding = next(run_checks(iter([("clock", lambda: doctor._clock(config))])))
    server.shutdown()
    assert finding.good is False
    assert "s ahead of" in finding.text
    assert "NTP" in finding.hint


def test_a_dashboard_that_answers_to_anybody(s3_root, s3_endpoint):
    finding = place(s3_root, "http://127.0.0.1:9")["Ray"]
    assert finding.good is False
    assert "no dashboard answers" in finding.text
    assert place(s3_root, s3_endpoint)["Ray"].good is False, "it is no dashboard"


def test_mlflow_away(s3_root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    finding = place(s3_root)["MLflow"]
    assert finding.good is False
    assert "nothing listens at http://127.0.0.1:9" in finding.text
