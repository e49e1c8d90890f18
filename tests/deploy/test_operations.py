"""docs/operations.md: its commands exist, what it names is there, and what wants no pods is run.

With a real API server: the Secrets are made as it says, the chart is installed and upgraded by Helm, and doctor agrees.
What wants pods is run by tests/cluster.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import kubernetes
import pytest
import yaml
from helm_python import Config, HelmError

from deploy import errors
from deploy.retrain import REJECTED
from tests.support import PROJECT
from tests.support.api_server import ApiServer, binaries
from tests.support.chart import CASES, CHART, Object, pod_specs, render, rendered, values_of
from tests.support.command_lines import parsed
from tests.support.operations import TEXT, blocks, starting

# Kubernetes' and Helm's, which tests/cluster has heard them say.
WORDS_OF_OTHERS = (
    "is forbidden", "no matches for kind", "exceeded quota", "CreateContainerConfigError", "strict decoding error",
)  # fmt: skip
NAMESPACE, RELEASE = "dvae", "denoising-vae"


# --- what is written ---


def test_every_block_is_run_or_says_that_it_is_not():
    """What needs a cloud or a registry says so; what needs pods is run by the tests of a whole cluster."""
    code = " ".join(path.read_text() for path in sorted((PROJECT / "tests" / "cluster").glob("*.py")))
    asked = re.findall(r'document\(\s*"([^"]+)"(?:,\s*"([^"]+)")?', code)
    assert len(blocks()) > 30
    for block in blocks():
        if re.search(r"^(docker|pg_dump|aws) ", block.code, re.MULTILINE):
            assert not block.is_run, block.code
        if block.is_run and block.wants_pods:
            lines = block.code.splitlines()
            assert any(
                section == block.section and any(line.startswith(beginning) for line in lines)
                for section, beginning in asked
            ), (block.section, block.code)
    assert len([block for block in blocks() if block.is_run and not block.wants_pods]) >= 10
    assert len([block for block in blocks() if block.is_run and block.wants_pods]) >= 10


def test_our_commands_are_known():
    seen = set()
    for words in starting("python", "-m"):
        if words[2] in ("deploy", "pipeline"):
            end = next((i for i, word in enumerate(words) if word in (">", "|", "||")), len(words))
            seen.add(parsed(words[2:end]).info_name)
    assert len(seen) >= 11, seen
    for line in re.findall(r"`(python -m (?:deploy|pipeline) [^`]+)`", TEXT):
        words = shlex.split(line)[2:]
        if words[1] in ("drain", "retrain") or len(words) < 2:
            continue  # named, not given with their arguments
        parsed(words)


def test_options_of_helm_name_values_of_the_chart():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for words in starting("helm"):
        for i, word in enumerate(words):
            if word == "--set":
                here: Any = values
                for key in words[i + 1].partition("=")[0].split("."):
                    assert key in here, words[i + 1]
                    here = here[key]
            if word.startswith("helm/"):
                assert (PROJECT / word).is_dir()
    for path in re.findall(
        r"`((?:groups|mlflow|head|networkPolicy|monitoring|site|s3|rayjob|rbac|kueue|image)\.[\w.-]+)`", TEXT
    ):
        keys = path.replace("groups.X.", "groupDefaults.").rstrip(".").split(".")
        here = values
        for key in keys:
            if path.startswith(("site.extra.", "kueue.x-")):
                break
            assert key in here, path
            here = here[key]


def test_links_and_anchors_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (PROJECT / "docs" / target).exists(), target
    for path in re.findall(r"`((?:ci|tests|\.github|docs|helm)/[\w./-]+)`", TEXT):
        assert (PROJECT / path).exists() or (CHART / path).exists(), path


def test_every_alert_and_every_gauge_has_its_line():
    from pipeline.cluster.gauges import GAUGES

    (rule,) = [made for made in rendered("everything") if made["kind"] == "PrometheusRule"]
    for alert in (one["alert"] for group in rule["spec"]["groups"] for one in group["rules"]):
        assert re.search(rf"^\| {alert} \|", TEXT, re.MULTILINE), alert
    for name in GAUGES:
        assert f"`{name}`" in TEXT.partition("## Metrics and alerts")[2]


def test_every_exit_code_has_its_line():
    told = TEXT.partition("## Exit codes")[2].partition("## Error lines")[0]
    mine = {int(code) for code in re.findall(r"^\| (\d+) \|", told, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert mine == {0, 1, 2, 130, REJECTED, *(kind.exit_code for kind in kinds)}  # type: ignore[attr-defined]


@cache
def refusals() -> list[str]:
    """What Helm says of two wrong values, as the document quotes it."""
    told = []
    for group in ({"max": 0}, {"enabled": False}):
        with pytest.raises(HelmError) as refusal:
            render({"site": {"root": "s3://b/p"}, "auth": {"existingSecret": "t"}, "groups": {"gpu-sit": group}})
        told.append(str(refusal.value))
    quoted = [
        "at '/groups/gpu-sit/max': minimum: got 0, want 1",
        'stagePools.train-sit: group "gpu-sit" is not enabled',
    ]
    assert all(words in text for words, text in zip(quoted, told, strict=True)), told
    return quoted


def test_error_lines_are_those_of_the_code():
    """Every fixed part of a quoted line stands in the code, or in the chart, or is what Helm says."""
    folders = [PROJECT / "deploy", PROJECT / "pipeline", CHART / "templates"]
    code = "\n".join(path.read_text() for folder in folders for path in sorted(folder.rglob("*.*")) if path.is_file()
                     if path.suffix in (".py", ".yaml", ".tpl"))  # fmt: skip
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # strings over several lines
    code = re.sub(r"\{'([^']*)' if [^}]*\}", r"\1", code).replace("{registry.CHAMPION}", "champion")
    table = TEXT.partition("## Error lines")[2]
    said = [
        line
        for row in re.findall(r"^\| [^|]+ \| ([^|]+) \|", table, re.MULTILINE)
        for line in re.findall(r"`([^`]+)`", row)
    ]
    assert len(said) > 40
    for line in said:
        if line in refusals():
            continue
        for part in re.split(r"\.\.\.|\{\}", line.replace("600 s", "... s")):
            if not any(words in part for words in WORDS_OF_OTHERS):
                assert part.strip(" '\"():") in code, line


def test_ray_and_kuberay_are_the_versions_in_use():
    workflow = (PROJECT / ".github" / "workflows" / "kind.yaml").read_text()
    (version,) = set(re.findall(r"kuberay/kuberay-operator --version ([\d.]+)", TEXT + workflow))
    assert tuple(map(int, version.split("."))) >= (1, 6, 0)


def test_the_bucket_takes_the_rules(s3_root):
    (rules,) = [json.loads(block.code) for block in blocks() if block.language == "json"]
    client = boto3.client("s3")
    client.put_bucket_lifecycle_configuration(Bucket="tests", LifecycleConfiguration=rules)
    kept = client.get_bucket_lifecycle_configuration(Bucket="tests")["Rules"]
    assert [rule["ID"] for rule in kept] == ["logs", "cut-uploads"]


# --- what is run ---


@dataclass(frozen=True)
class Place:
    """A namespace in which the document's Secrets were made, and the chart installed."""

    server: ApiServer
    environment: dict[str, str]

    def bash(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=PROJECT, env=self.environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip


@pytest.fixture(scope="module")
def place(api_server: ApiServer, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Place:
    programs = binaries()
    assert programs is not None
    if not (programs / "kubectl").exists():
        pytest.skip("no kubectl beside kube-apiserver: `.ci/kubernetes-binaries` builds it as well")
    keys = {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    client = boto3.client("s3", "us-east-1", endpoint_url=s3_endpoint, aws_access_key_id="t", aws_secret_access_key="t")
    client.create_bucket(Bucket="operations")
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "MLFLOW_", "DVAE_"))
    }
    return Place(
        api_server,
        {**kept, **keys, "PATH": path, "AWS_DEFAULT_REGION": "us-east-1", "ROOT": "s3://operations/production",
         "KUBECONFIG": str(api_server.kubeconfig()), "HOME": str(tmp_path_factory.mktemp("home"))},
    )  # fmt: skip


def install_values() -> Object:
    """Those of production, without Prometheus' operator, whose kinds the server does not know."""
    return values_of("gpu-production") | {"monitoring": {"dashboard": {"enabled": True}}}


def secrets_line(place: Place) -> str:
    done = place.bash(f'python -m deploy doctor --namespace {NAMESPACE} --root "$ROOT" --nodes-on-demand')
    assert done.returncode == 1, done.stderr  # no operator runs here
    (line,) = [line for line in done.stdout.splitlines() if line[4:].startswith("Secrets")]
    return line


@pytest.fixture(scope="module")
def installed(place: Place) -> Place:
    """Everything that the document has to be run for an installation; doctor looks on."""
    made = [block for block in blocks() if block.is_run and "kubectl create namespace" in block.code]
    secrets = [block for block in blocks() if block.is_run and "create secret" in block.code and block not in made]
    assert len(made) == 1
    assert len(secrets) == 4
    namespace = next(line for line in made[0].code.splitlines() if "create namespace" in line)
    assert place.bash(namespace).returncode == 0
    with Config(kubeconfig_path=place.server.kubeconfig(), namespace=NAMESPACE) as helm:
        release = helm.install(CHART, RELEASE, install_values(), namespace=NAMESPACE)
    assert release["status"] == "deployed"
    line = secrets_line(place)
    assert line.startswith("no "), line
    assert "is missing" in line
    for block in (*made, *secrets):
        rest = "\n".join(line for line in block.code.splitlines() if line != namespace)
        done = place.bash(rest)
        assert done.returncode == 0, (block.code, done.stderr)
    return place


@pytest.mark.slow
def test_doctor_is_content_with_the_secrets_that_it_makes(installed):
    line = secrets_line(installed)
    assert line.startswith("ok "), line
    assert line.split()[-4:] == ["mlflow-database,", "mlflow-users,", "ray-token,", "redis"]


@pytest.mark.slow
def test_the_secrets_serve_every_example(installed):
    """Each key that any of ci/'s values takes from a Secret is made by the document."""
    core = kubernetes.client.CoreV1Api(installed.server.client())
    there = {one.metadata.name: set(one.data or {}) for one in core.list_namespaced_secret(NAMESPACE).items}
    for case in CASES:
        for _, spec in pod_specs(rendered(case)).values():
            for container in spec["containers"]:
                for variable in container.get("env", []):
                    if source := variable.get("valueFrom", {}).get("secretKeyRef"):
                        assert source["key"] in there[source["name"]], (case, source)


@pytest.mark.slow
def test_every_block_that_is_not_marked_is_run(installed, tmp_path):
    done_before = ("kubectl create namespace", "kubectl -n dvae create secret")
    ran = 0
    for block in blocks():
        if (
            not block.is_run
            or block.wants_pods
            or any(word in block.code for word in done_before)
            or "BUCKET/PREFIX" in block.code
        ):
            continue
        code = block.code.replace("> rayjob.yaml", f"> {tmp_path}/rayjob.yaml")
        done = installed.bash(code)
        assert done.returncode == 0, (block.code, done.stdout, done.stderr)
        ran += 1
    assert ran >= 6
    job = yaml.safe_load((tmp_path / "rayjob.yaml").read_text())
    assert job["kind"] == "RayJob"
    done = installed.bash(f"kubectl -n {NAMESPACE} create --dry-run=server --validate=strict -f {tmp_path}/rayjob.yaml")
    assert done.returncode == 0, done.stderr


def test_the_token_is_read_from_its_secret(installed):
    """By the document's own shell: the token."""
    (token,) = {line for block in blocks() for line in block.code.splitlines() if "export RAY_AUTH_MODE" in line}
    done = installed.bash(f"{token}\necho $RAY_AUTH_MODE $RAY_AUTH_TOKEN")
    assert re.fullmatch(r"token [0-9a-f]{64}\n", done.stdout), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_example_applies(installed, case, tmp_path):
    """Server-side, as Helm 4 does it: all but the kinds that other operators bring."""
    known = [made for made in rendered(case) if made["apiVersion"] != "monitoring.coreos.com/v1"]
    (tmp_path / "chart.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": known}))
    apply = f"kubectl -n {NAMESPACE} apply --server-side --dry-run=server --validate=strict -f {tmp_path}/chart.json"
    done = installed.bash(apply)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(known)


@pytest.mark.parametrize("case", CASES)
def test_the_pods_fit_pod_securitys_restricted(installed, case, tmp_path):
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{i}", "labels": labels},
         "spec": {"restartPolicy": "Never", **spec}}
        for i, (labels, spec) in enumerate(pod_specs(rendered(case)).values())
    ]  # fmt: skip
    (tmp_path / "pods.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
    create = f"kubectl -n {NAMESPACE} create --dry-run=server -f {tmp_path}/pods.json"
    done = installed.bash(create)
    assert done.returncode == 0, done.stderr
    loose = json.loads((tmp_path / "pods.json").read_text())
    loose["items"][0]["spec"]["securityContext"] = {}
    loose["items"][0]["spec"]["containers"][0]["securityContext"] = {}
    (tmp_path / "pods.json").write_text(json.dumps(loose))
    assert "violates PodSecurity" in installed.bash(create).stderr


def test_an_upgrade_meets_the_autoscaler(installed):
    """Why the document has --force-conflicts: the autoscaler has written into a list that Helm owns as a whole."""
    patch = '[{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": 1}]'
    done = installed.bash(
        f"kubectl -n {NAMESPACE} patch raycluster {RELEASE} --type=json --field-manager=autoscaler --patch '{patch}'"
    )
    assert done.returncode == 0, done.stderr
    values = install_values()
    values["groups"]["cpu"]["max"] = 6
    with (
        Config(kubeconfig_path=installed.server.kubeconfig(), namespace=NAMESPACE) as helm,
        pytest.raises(HelmError, match=r"conflict with \"autoscaler\" using ray.io/v1: .spec.workerGroupSpecs"),
    ):
        helm.upgrade(CHART, RELEASE, values, namespace=NAMESPACE)
    for words in (*starting("helm", "upgrade", RELEASE), *starting("helm", "rollback", RELEASE)):
        assert "--force-conflicts" in words
