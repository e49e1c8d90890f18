"""The API server of the tests is a real one: it validates, authorizes, forgets and remembers as a cluster's does."""

import subprocess
from collections.abc import Callable

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tests.support.api_server import STRANGER, ApiServer, binaries

JOBS = ("ray.io", "v1")


def rayjob(name: str, **spec: object) -> dict[str, object]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {"entrypoint": "true", "clusterSelector": {"ray.io/cluster": "any"}, **spec},
    }


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(ApiException) as refused:
        call()
    status: int = refused.value.status
    return status


@pytest.fixture
def jobs(api_server: ApiServer) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(api_server.client())


def test_version(api_server):
    version = client.VersionApi(api_server.client()).get_code()
    assert version.git_version.startswith(f"v{version.major}.{version.minor}.")
    assert version.platform.startswith("linux/")


def test_an_unknown_token_is_refused(api_server):
    stranger = client.CoreV1Api(api_server.client(STRANGER))
    assert refusal(stranger.list_namespace) == 401


def test_rayjobs_are_validated(api_server, jobs):
    namespace = api_server.namespace()
    kept = jobs.create_namespaced_custom_object(*JOBS, namespace, "rayjobs", rayjob("pruned", noSuchField=1))
    assert "noSuchField" not in kept["spec"]
    assert kept["spec"]["submissionMode"] == "K8sJobMode"  # the CRD's default

    def strictly(job: dict[str, object]) -> object:
        return jobs.create_namespaced_custom_object(*JOBS, namespace, "rayjobs", job, field_validation="Strict")

    assert refusal(lambda: strictly(rayjob("unknown", noSuchField=1))) == 400
    assert refusal(lambda: strictly(rayjob("wrong", backoffLimit="many"))) == 422


def test_status_is_a_subresource(api_server, jobs):
    namespace = api_server.namespace()
    status = {"status": {"jobDeploymentStatus": "Failed", "reason": "AppFailed"}}
    created = jobs.create_namespaced_custom_object(*JOBS, namespace, "rayjobs", {**rayjob("one"), **status})
    assert "status" not in created
    jobs.patch_namespaced_custom_object_status(*JOBS, namespace, "rayjobs", "one", status)
    read = jobs.get_namespaced_custom_object(*JOBS, namespace, "rayjobs", "one")
    assert read["status"]["reason"] == "AppFailed"
    assert read["metadata"]["generation"] == 1


def test_plain_users_may_do_what_a_role_says(api_server, jobs):
    mine, other = api_server.namespace(), api_server.namespace()
    hers = client.CustomObjectsApi(api_server.client("alice"))
    assert refusal(lambda: hers.list_namespaced_custom_object(*JOBS, mine, "rayjobs")) == 403
    api_server.allow("alice", mine, ["list"], "ray.io", ["rayjobs"])
    assert hers.list_namespaced_custom_object(*JOBS, mine, "rayjobs")["items"] == []
    assert refusal(lambda: hers.create_namespaced_custom_object(*JOBS, mine, "rayjobs", rayjob("x"))) == 403
    assert refusal(lambda: hers.list_namespaced_custom_object(*JOBS, other, "rayjobs")) == 403


def test_an_old_resource_version_is_gone(api_server, jobs):
    namespace = api_server.namespace()
    before = jobs.list_namespaced_custom_object(*JOBS, namespace, "rayjobs")["metadata"]["resourceVersion"]
    jobs.create_namespaced_custom_object(*JOBS, namespace, "rayjobs", rayjob("one"))

    def events(since: str) -> list[str]:
        stream = watch.Watch().stream(
            jobs.list_namespaced_custom_object, *JOBS, namespace, "rayjobs", resource_version=since, timeout_seconds=1
        )
        return [event["object"]["metadata"]["name"] for event in stream]

    assert events(before) == ["one"]
    api_server.compact()
    assert refusal(lambda: events(before)) == 410
    now = jobs.list_namespaced_custom_object(*JOBS, namespace, "rayjobs")["metadata"]["resourceVersion"]
    assert events(now) == []


def test_away_and_back(api_server, jobs):
    namespace = api_server.namespace()
    jobs.create_namespaced_custom_object(*JOBS, namespace, "rayjobs", rayjob("kept"))
    watching = watch.Watch().stream(jobs.list_namespaced_custom_object, *JOBS, namespace, "rayjobs")
    assert next(watching)["object"]["metadata"]["name"] == "kept"
    api_server.stop()
    try:
        with pytest.raises((HTTPError, ApiException)):
            next(watching)
        with pytest.raises(HTTPError):
            client.VersionApi(api_server.client()).get_code(_request_timeout=5)
    finally:
        api_server.start()
    found = jobs.list_namespaced_custom_object(*JOBS, namespace, "rayjobs")["items"]
    assert [job["metadata"]["name"] for job in found] == ["kept"]


def test_the_kubeconfig_is_for_kubectl_too(api_server):
    programs = binaries()
    assert programs is not None
    if not (programs / "kubectl").exists():
        pytest.skip("no kubectl beside kube-apiserver: `.ci/kubernetes-binaries` builds it as well")
    who = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]
    command = [str(programs / "kubectl"), "--kubeconfig", str(api_server.kubeconfig("bob")), *who]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "bob"


def test_nobody_else_reads_its_tokens_and_keys(api_server):
    api_server.kubeconfig(STRANGER)
    files = [path for path in api_server._folder.iterdir() if path.suffix in (".csv", ".key", ".kubeconfig")]
    assert len(files) >= 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
