"""What is wrong around the chart, and what Helm, doctor and a submission say: one line, what and what to do about it.

Before anything is installed for the other tests, by the name of this file; in a namespace of its own."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.addons import OPERATOR, old_crds
from tests.cluster.installation import RELEASE, ROOT, Beside, Installation, install_operator
from tests.cluster.own import Cluster
from tests.cluster.work import start
from tests.support.groups import Group

SPACE = "bad"
PLACE = f"{ROOT}-bad"
TOKEN = "0" * 64
ELSEWHERE = "http://mlflow.elsewhere:5000"
DOCTOR = f"python -m deploy doctor --namespace {SPACE} --root {PLACE}"
RAYJOB = ["python", "-m", "deploy", "rayjob", "stage", "prepare", "quickstart", "--namespace", SPACE, "--root", PLACE]
DASHBOARD = "http://localhost:8299"
FORWARD = f"kubectl -n {SPACE} port-forward service/{RELEASE}-head-svc 8299:8265"
SUBMIT = f"python -m deploy submit stage prepare quickstart --root {PLACE} --address {DASHBOARD}"

# MLflow on a volume, of a class that no cluster has.
OF_A_TRIAL = {
    "database": {"existingSecret": None, "sqlite": {"size": "1Gi", "storageClassName": "no-such-class"}},
    "basicAuth": {"enabled": False},
}


class Bad(Installation):
    """Somebody's attempt to install, in a namespace that has nothing yet."""

    def install(self, **changes: Any) -> "subprocess.CompletedProcess[str]":
        self.write_values(**changes)
        return self.run(f"helm install {RELEASE} helm/denoising-vae --namespace {SPACE} --values {self.values}")

    def template(self) -> Path:
        """The chart's RayJob in a file: Helm asks no cluster for it."""
        told = self.bash(f"helm template {RELEASE} helm/denoising-vae -f {self.values} -s templates/rayjob.yaml")
        file = self.values.with_name("rayjob.yaml")
        file.write_text(told)
        return file

    def install_and_see_nothing(self, **changes: Any) -> None:
        """Helm only hands the objects over; its notes say who looks at what becomes of them."""
        told = self.install(**changes)
        assert told.returncode == 0, told.stderr
        assert f"If it does not become ready, find out why and what to do:\n\n   {DOCTOR}" in told.stdout

    def uninstall(self) -> None:
        self.run(f"helm uninstall {RELEASE} --namespace {SPACE} --ignore-not-found")
        for kind in ("rayjobs", "pods", "pvc", "secrets", "resourcequotas"):
            self.run(f"kubectl --namespace {SPACE} delete {kind} --all --grace-period=0 --force --timeout=20s")

    def secret(self, name: str, **content: str) -> None:
        words = [f"--from-literal={key}={value}" for key, value in content.items()]
        self.kubectl("create", "secret", "generic", name, *words)

    def secrets(self) -> None:
        self.secret("ray-token", auth_token=TOKEN)
        keys = {name: self.beside.keys[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        self.secret("s3-keys", **keys)

    def red(self, what: str, seconds: float = 60) -> str:
        """Doctor's line about it, as soon as it is red."""
        lines: list[str] = []

        def is_red() -> bool:
            told = self.run(DOCTOR).stdout.splitlines()
            lines[:] = [line for line in told if re.match(rf"no +{what} ", line)]
            return bool(lines)

        self.wait(is_red, f"doctor finds nothing wrong with {what}", seconds)
        return lines[0]

    def rayjob_says(self, words: str) -> str:
        """The line with these words that `rayjob` prints while it waits."""
        process = start(self, RAYJOB)
        said = []
        assert process.stderr
        try:
            for line in process.stderr:
                said.append(line)
                if words in line:
                    return line
        finally:
            process.kill()
            process.wait()
        raise AssertionError("".join(said))

    def give_up(self) -> None:
        """Delete the RayJob; KubeRay cannot stop its job without a token, but sees that the cluster has gone."""
        (name,) = self.kubectl("get", "rayjobs", "--output=jsonpath={.items[*].metadata.name}").split()
        self.kubectl("delete", "rayjob", name, "--wait=false")
        self.kubectl("delete", "raycluster", f"--selector=ray.io/originated-from-cr-name={name}", "--timeout=60s")
        self.kubectl("wait", f"rayjob/{name}", "--for=delete", "--timeout=60s")

    def refused(self, command: str) -> str:
        """The one line, of what and what to do about it, that such a command ends with."""
        told = self.run(command)
        (line,) = told.stderr.splitlines()
        assert told.returncode != 0
        return line

    def submission_finds_nobody(self) -> None:
        """Whatever keeps the head away: there is nothing to forward to, and who submits all the same is told so."""
        assert self.run(f"{FORWARD} --pod-running-timeout=3s", timeout=60).returncode != 0
        line = self.refused(SUBMIT)
        assert f"no dashboard answers at {DASHBOARD}" in line
        assert "Run `python -m deploy doctor` to find out why a cluster does not start." in line


@pytest.fixture(scope="module")
def bare(cluster: Cluster, beside: Beside, folder: Path) -> Iterator[Bad]:
    """Without KubeRay."""
    home = folder / "bad"
    home.mkdir()
    bad = Bad(cluster, beside, home, SPACE, PLACE)
    bad.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{home}/mlflow.db"
    cluster.kubectl("create", "namespace", SPACE)
    yield bad
    cluster.kubectl("delete", "namespace", SPACE, "--timeout=120s")


@pytest.fixture(scope="module")
def bad(bare: Bad) -> Iterator[Bad]:
    """With KubeRay."""
    with ExitStack() as stack:
        install_operator(bare, stack)
        yield bare
        bare.bash(f"kubectl --namespace {SPACE} wait rayjobs,rayclusters --all --for=delete --timeout=180s")
        bare.bash(f"helm uninstall {OPERATOR} --namespace kuberay-system --wait")


@pytest.fixture(autouse=True)
def nothing_is_left(bare: Bad) -> Iterator[None]:
    yield
    bare.uninstall()


def with_mlflow_elsewhere(**changes: Any) -> dict[str, Any]:
    policy = {"externalMlflow": {"cidrs": ["10.0.0.1/32"]}}
    return {"mlflow": {"enabled": False, "externalUri": ELSEWHERE}, "networkPolicy": policy, **changes}


def test_kuberay_is_missing(bare: Bad):
    if bare.cluster.node is None:
        pytest.skip("whether the cluster has KubeRay is not ours to say")
    told = bare.install(**with_mlflow_elsewhere())
    assert told.returncode != 0
    assert 'no matches for kind "RayCluster" in version "ray.io/v1"' in told.stderr
    assert "ensure CRDs are installed first" in told.stderr
    assert "is missing. Install KubeRay's operator of version 1.6 or newer." in bare.red("KubeRay's CRDs")
    assert "has no releases of the chart. Install helm/denoising-vae there" in bare.refused(" ".join(RAYJOB))
    bare.submission_finds_nobody()


def test_its_crds_are_too_old(bare: Bad):
    if bare.cluster.node is None:
        pytest.skip("which KubeRay the cluster has is not ours to say")
    files = [word for path in old_crds() for word in ("--filename", str(path))]
    try:
        bare.cluster.kubectl("create", *files)
        line = bare.red("KubeRay's CRDs")
        assert "has no authOptions.secretName: it is older than KubeRay 1.6. Apply the CRDs" in line
        told = bare.install(**with_mlflow_elsewhere())
        assert told.returncode != 0
        assert "KubeRay's CRDs in this cluster are older than 1.6: apply newer ones" in told.stderr
        line = bare.refused(f"{' '.join(RAYJOB)} --template {bare.template()}")
        assert "strict decoding error: unknown field" in line
        assert "Run `python -m deploy doctor` to check the cluster." in line
        bare.submission_finds_nobody()
    finally:
        bare.cluster.kubectl("delete", "--ignore-not-found", *files)


def test_a_secret_is_missing(bad: Bad):
    bad.install_and_see_nothing(**with_mlflow_elsewhere())
    line = bad.red("Secrets")
    assert line.endswith(f"Secret ray-token is missing. Run `kubectl -n {SPACE} create secret generic ray-token ...`.")
    line = bad.rayjob_says("CreateContainerConfigError")
    assert 'secret "ray-token" not found. Create what is missing; the pod then starts by itself.' in line
    bad.give_up()
    bad.submission_finds_nobody()


def test_the_image_cannot_be_pulled(bad: Bad):
    bad.secrets()
    image = {"repository": "registry.invalid/denoising-vae", "tag": "none"}
    bad.install_and_see_nothing(**with_mlflow_elsewhere(image=image))
    for line in (bad.red("pods"), bad.rayjob_says("ErrImagePull")):
        assert "registry.invalid" in line
        assert "Correct image.repository and image.tag" in line
    bad.submission_finds_nobody()


def test_the_quota_is_too_small(bad: Bad):
    bad.secrets()
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": SPACE},
             "spec": {"hard": {"requests.memory": "1Gi"}}}  # fmt: skip
    bad.kubectl("apply", "--filename", "-", given=yaml.safe_dump(quota))
    bad.install_and_see_nothing(mlflow=OF_A_TRIAL)
    for line in (bad.red("Ray cluster"), bad.red("pods"), bad.rayjob_says("cannot be created")):
        assert "exceeded quota: small" in line
        assert "Raise the quota or limit, or request less." in line
    bad.submission_finds_nobody()


def test_there_is_no_such_storage_class(bad: Bad):
    bad.secrets()
    bad.install_and_see_nothing(mlflow=OF_A_TRIAL)
    line = bad.red("volumes")
    assert re.search(r"storage class no-such-class does not exist\. (Create one|Use one of)", line)
    with forwarded_head(bad):
        told = bad.run(f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={TOKEN} {SUBMIT}")
    assert told.returncode == 0, "what MLflow missed is kept for it" + told.stdout + told.stderr
    assert re.search(r"(nothing listens|MLflow) at http://\S+mlflow\S*", told.stdout + told.stderr)


@contextmanager
def forwarded_head(bad: Bad) -> Iterator[None]:
    bad.bash(f"kubectl -n {SPACE} wait --for=condition=HeadPodReady raycluster/{RELEASE} --timeout=5m")
    group = Group(["bash", "-c", FORWARD], bad.folder / "forward.log", bad.environment)
    try:
        bad.wait(lambda: bad.run(f"curl --silent {DASHBOARD}").returncode == 0, "the head is not reached")
        yield
    finally:
        group.end()
