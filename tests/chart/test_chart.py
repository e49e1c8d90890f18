"""The chart, rendered for every file of ci/: valid for Kubernetes and KubeRay, and fit for what it is for."""

import copy
import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import lint

from deploy import rayjob
from deploy.submit import stage_work
from pipeline.config.schema import ClusterConfig
from pipeline.workflow.graph import NAMES
from tests.support.chart import (
    CASES,
    CHART,
    GOOD,
    Object,
    containers,
    helm3,
    kinds,
    named,
    pod_specs,
    render,
    rendered,
    values_of,
)

CORE = ("v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1", "rbac.authorization.k8s.io/v1")
KUBERNETES = ("1.37", "1.31")  # the newest schemas that are packaged, and those of two years before


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_to_say(case):
    report = lint(CHART, values_of(case), strict=True, kube_version="v1.34.0")
    told = [message for message in report["messages"] if message["severity"] > 1 and "icon" not in message["error"]]
    assert not report["errors"]
    assert not told


@pytest.mark.parametrize("case", CASES)
def test_helm_3_renders_the_same(case):
    binary = helm3()
    if binary is None:
        pytest.skip("there is no Helm 3: name one by HELM3")
    file = CHART / "ci" / f"{case}-values.yaml"
    common = [str(CHART), "--values", str(file)]
    subprocess.run([binary, "lint", "--strict", *common], check=True, capture_output=True)
    command = [binary, "template", "r", "--namespace", "n", "--kube-version", "1.34.0", *common]
    made = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def by_name(all_: list[Object]) -> dict[str, Object]:
        return {f"{one['kind']}/{one['metadata']['name']}": one for one in all_}

    third = by_name([one for one in yaml.safe_load_all(made) if one])
    fourth = by_name(copy.deepcopy(rendered(case)))
    for one in [*third.values(), *fourth.values()]:
        one["metadata"].get("labels", {}).pop("app.kubernetes.io/managed-by", None)
    assert third == fourth


@pytest.mark.parametrize(
    ("known", "is_old"), [((), False), (("RayCluster",), True), (("RayCluster", "RayCronJob"), False)]
)
def test_crds_of_before_kuberay_1_6_are_refused(known, is_old):
    binary = helm3()
    if binary is None:
        pytest.skip("there is no Helm 3: name one by HELM3")
    command = [binary, "template", "r", str(CHART), "--kube-version", "1.34.0"]
    command += ["--values", str(CHART / "ci" / "trial-values.yaml")]
    command += [f"--api-versions=ray.io/v1/{kind}" for kind in known]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ("KubeRay's CRDs in this cluster are older than 1.6" in told.stderr) == is_old
    assert (told.returncode != 0) == is_old, told.stderr


@pytest.mark.parametrize("version", KUBERNETES)
def test_core_objects_are_valid(objects, version):
    core = [made for made in objects if made["apiVersion"] in CORE]
    assert len(core) > 5
    for made in core:
        kubernetes_validate.validate(made, version, strict=True)


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses unknown fields, which the API server would drop without a word."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@cache
def ray_schema(plural: str) -> dict[str, Any]:
    if "DVAE_TEST_CRDS" not in os.environ:
        pytest.skip("DVAE_TEST_CRDS is not set: it names the folder with KubeRay's CRDs")
    text = Path(os.environ["DVAE_TEST_CRDS"], f"ray.io_{plural}.yaml").read_text()
    definition = yaml.load(text, yaml.CSafeLoader)
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"x-kubernetes-preserve-unknown-fields": True}
    made: dict[str, Any] = strict(schema)
    return made


def work_on(objects: list[Object], queue: str | None) -> Object:
    """A RayJob as `deploy rayjob` would create it."""
    template = rayjob.parse_template(named(objects, "ConfigMap", "-rayjob")["data"]["rayjob.yaml"], "the chart")
    options = rayjob.JobOptions(3, queue, ("train-sit",), ClusterConfig())
    return rayjob.render(template, stage_work("train-sit", "quickstart", None, "s3://b/p"), options, 1)


@pytest.fixture(params=["standing", "short-lived", "queued"])
def ray_spec(request: pytest.FixtureRequest, objects: list[Object]) -> dict[str, Any]:
    """The spec of the standing cluster, and those of jobs of their own."""
    if request.param == "standing":
        spec: dict[str, Any] = kinds(objects, "RayCluster")[0]["spec"]
        return spec
    return work_on(objects, "q" if request.param == "queued" else None)["spec"]["rayClusterSpec"]  # type: ignore[no-any-return]


def test_ray_objects_are_some_to_kuberay(objects):
    (cluster,) = kinds(objects, "RayCluster")
    jsonschema.Draft202012Validator(ray_schema("rayclusters")).validate(cluster)
    for queue in (None, "q"):
        jsonschema.Draft202012Validator(ray_schema("rayjobs")).validate(work_on(objects, queue))


def test_kuberays_own_rules_for_jobs(objects):
    for queue in (None, "q"):
        job = work_on(objects, queue)
        spec = job["spec"]
        assert len(job["metadata"]["name"]) <= 47
        assert spec["backoffLimit"] == 2
        assert "clusterSelector" not in spec, "excluded by backoffLimit, and by Kueue"
        assert spec["submissionMode"] == "K8sJobMode"
        assert spec["shutdownAfterJobFinishes"] is True, "Kueue wants it, and ttlSecondsAfterFinished too"
        assert "deletionStrategy" not in spec, "excluded by shutdownAfterJobFinishes"
        assert "upgradeStrategy" not in spec["rayClusterSpec"]
        assert len(spec["rayClusterSpec"]["workerGroupSpecs"]) <= 7, "Kueue's most"
        assert "head" not in [group["groupName"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]]
        scaled, labels = spec["rayClusterSpec"].get("enableInTreeAutoscaling"), job["metadata"]["labels"]
        elastic = job["metadata"]["annotations"].get("kueue.x-k8s.io/elastic-job") == "true"
        assert not (scaled and "kueue.x-k8s.io/queue-name" in labels) or elastic


def test_kuberays_own_rules(ray_spec):
    """What the operator checks beyond its schema, and what Ray would misunderstand."""
    spec = ray_spec
    templates = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert tuple(map(int, spec["rayVersion"].split(".")[:2])) >= (2, 52), "token authentication"
    assert spec["authOptions"]["mode"] == "token"
    if spec.get("enableInTreeAutoscaling"):
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert all(one["template"]["spec"].get("restartPolicy") in (None, "Never") for one in templates)
    for one in templates:
        resources = one["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(names) == len(set(names))
    for group in spec["workerGroupSpecs"]:
        given = group["rayStartParams"]["resources"]  # Ray drops the first and last character, then reads JSON
        assert json.loads(given[1:-1]) == {f"pool-{group['groupName']}": 1}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_ray_is_of_one_version():
    constraints = (CHART.parents[1] / "constraints.txt").read_text().splitlines()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert f"ray=={values['image']['rayVersion']}" in constraints


def test_every_stage_finds_its_pool(objects):
    """By a resource that one group has, and no chance in it."""
    site = yaml.safe_load(named(objects, "ConfigMap", "-site")["data"]["site.yaml"])
    (cluster,) = kinds(objects, "RayCluster")
    has = {
        resource for group in cluster["spec"]["workerGroupSpecs"]
        for resource in json.loads(group["rayStartParams"]["resources"][1:-1])
    }  # fmt: skip
    assert sorted(site["cluster"]["pools"]) == sorted(NAMES)
    for pool in site["cluster"]["pools"].values():
        assert set(pool) <= has


def test_the_site_file_is_a_config(objects, tmp_path, monkeypatch):
    from pipeline.config.loading import load_config

    text = named(objects, "ConfigMap", "-site")["data"]["site.yaml"]
    (tmp_path / "site.yaml").write_text(text)
    monkeypatch.setenv("DVAE_SITE", str(tmp_path / "site.yaml"))
    assert load_config("quickstart").root.startswith("s3://denoising-vae/")


@pytest.mark.parametrize(
    ("case", "group", "device", "cpus"),
    [
        ("trial", {}, "cpu", 2),
        ("trial", {"resources": {"cpu": "500m", "memory": "6Gi"}}, "cpu", 1),
        ("trial", {"resources": {"cpu": "2500m", "memory": "6Gi"}}, "cpu", 2),
        ("spot", {}, "cuda", 12),
    ],
)
def test_the_site_says_what_a_pool_that_begins_with_no_node_cannot(case, group, device, cpus):
    """Ray would choose the device and a worker's CPUs by the nodes that are there when a stage begins."""
    values = copy.deepcopy(values_of(case))
    values["groups"].setdefault("cpu", {}).update(group)
    site = yaml.safe_load(named(render(values), "ConfigMap", "-site")["data"]["site.yaml"])
    assert (site["cluster"]["device"], site["cluster"]["cpus_per_worker"]) == (device, cpus)


def test_no_pod_has_more_than_it_needs(objects):
    pods = pod_specs(objects)
    assert len(pods) >= 4
    for where, (_, spec) in pods.items():
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, where
        assert security["runAsUser"] > 0, where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), where
        token = spec["automountServiceAccountToken"]
        assert token is False or where.endswith(" head"), where
        assert spec["serviceAccountName"] != "default" if "serviceAccountName" in spec else where.startswith("Pod ")
        for container in containers(spec):
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True, where
            assert own["allowPrivilegeEscalation"] is False, where
            assert own["capabilities"] == {"drop": ["ALL"]}, where
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, where
            writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            assert "/tmp" in writable, where
        assert not any("hostPath" in volume for volume in spec["volumes"]), where


def test_secrets_are_referred_to_and_never_rendered(objects):
    assert not kinds(objects, "Secret")
    for where, (_, spec) in pod_specs(objects).items():
        for container in containers(spec):
            for variable in container.get("env", []):
                secret = any(word in variable["name"] for word in ("SECRET", "PASSWORD", "TOKEN", "ACCESS_KEY"))
                assert not (secret and "value" in variable), (where, variable["name"])


@pytest.mark.parametrize("case", ["gpu-production", "everything"])
def test_one_image_by_its_digest_where_given(case):
    digest = values_of(case).get("image", {}).get("digest", "")
    images = {one["image"] for _, spec in pod_specs(rendered(case)).values() for one in containers(spec)}
    assert len(images) == 1
    assert digest in images.pop()


def test_retrain_has_a_preset_of_its_own(tmp_path):
    """`retrain.config` is a preset's file, and goes by the name in the command."""
    from pipeline.config.loading import load_config

    objects = rendered("everything")
    text = named(objects, "ConfigMap", "-retrain")["data"]["retrain.yaml"]
    (tmp_path / "retrain.yaml").write_text(text)
    assert load_config(str(tmp_path / "retrain.yaml")).data.uri == "s3://images/cifar10"
    _, spec = next(pair for where, pair in pod_specs(objects).items() if where.startswith("CronJob"))
    (container,) = spec["containers"]
    assert "/etc/dvae-retrain/retrain.yaml" in container["command"]
    assert {"name": "preset", "mountPath": "/etc/dvae-retrain", "readOnly": True} in container["volumeMounts"]


def test_no_group_scales_by_itself_without_an_autoscaler():
    """KubeRay refuses an idle timeout then, and Helm would not say so."""
    values = {**values_of("spot"), "autoscaler": {"enabled": False}}
    (cluster,) = kinds(render(values), "RayCluster")
    assert not [group for group in cluster["spec"]["workerGroupSpecs"] if "idleTimeoutSeconds" in group]


def test_rays_object_store_fits_into_dev_shm(ray_spec):
    """Else Ray would put it on the disk, with a warning that nobody reads."""
    for one in (ray_spec["headGroupSpec"], *ray_spec["workerGroupSpecs"]):
        volumes = {volume["name"]: volume for volume in one["template"]["spec"]["volumes"]}
        size = int(volumes["shm"]["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024**3
        assert 0.9 * size < int(one["rayStartParams"]["object-store-memory"]) < size
        memory = one["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        assert size < int(memory.removesuffix("Gi")) * 1024**3


def test_no_pod_is_evicted_for_its_own_mirror(objects):
    """The kubelet counts an emptyDir on disk against a container's limit of ephemeral storage."""
    (cluster,) = kinds(objects, "RayCluster")
    for group in cluster["spec"]["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        (mirror,) = [volume for volume in spec["volumes"] if volume["name"] == "mirror"]
        assert "ephemeral" in mirror or "ephemeral-storage" not in spec["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("case", CASES)
def test_an_authority_of_ones_own_reaches_every_pod_that_needs_it(case):
    authority = "    Data: <of openssl>\r\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n\n"
    objects = render({**values_of(case), "caBundle": authority})
    assert named(objects, "ConfigMap", "-site")["data"]["ca.crt"] == authority
    with_s3 = 0
    for where, (_, spec) in pod_specs(objects).items():
        for container in containers(spec):
            variables = {one["name"]: one.get("value") for one in container.get("env", [])}
            if "AWS_REGION" not in variables:
                continue
            with_s3 += 1
            for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
                assert variables[name] == "/etc/dvae/ca.crt", where
            (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == "/etc/dvae"]
            (volume,) = [one for one in spec["volumes"] if one["name"] == mount["name"]]
            assert volume["configMap"]["name"].endswith("-site"), where
    assert with_s3 >= 3


def test_large_numbers_stay_what_they_are():
    large = {"NCCL_BUFFSIZE": 8388608, "SHARE": 0.5, "ON": True, "NAME": "8388608"}
    values = {
        **GOOD,
        "s3": {"env": large},
        "groups": {"cpu": {"env": large}},
        "rayjob": {"ttlSecondsAfterFinished": 1209600},
        "autoscaler": {"idleTimeoutSeconds": 1209600},
    }
    objects = render(values)
    (cluster,) = kinds(objects, "RayCluster")
    (pod,) = [one for one in cluster["spec"]["workerGroupSpecs"] if one["groupName"] == "cpu"]
    variables = {one["name"]: one.get("value") for one in pod["template"]["spec"]["containers"][0]["env"]}
    expected = {"NCCL_BUFFSIZE": "8388608", "SHARE": "0.5", "ON": "true", "NAME": "8388608"}
    assert {name: variables[name] for name in large} == expected
    text = named(objects, "ConfigMap", "-rayjob")["data"]["rayjob.yaml"]
    assert "ttlSecondsAfterFinished: 1209600\n" in text
    assert "idleTimeoutSeconds: 1209600\n" in text


def test_another_mlflow_with_users():
    objects = render({
        **GOOD, "mlflow": {"enabled": False, "externalUri": "https://mlflow.example.com", "externalSecret": "users"},
        "networkPolicy": {"externalMlflow": {"cidrs": ["10.0.0.0/8"]}},
    })  # fmt: skip
    assert not kinds(objects, "Deployment")
    for where, (_, spec) in pod_specs(objects).items():
        if where.startswith("RayCluster"):
            names = {one["name"]: one for one in spec["containers"][0]["env"]}
            assert names["MLFLOW_TRACKING_USERNAME"]["valueFrom"]["secretKeyRef"]["name"] == "users"


def test_a_release_without_a_standing_cluster():
    objects = render({**GOOD, "rayCluster": {"enabled": False}})
    assert not kinds(objects, "RayCluster")
    assert named(objects, "ConfigMap", "-rayjob")
    assert all("ray-head" not in one["metadata"]["name"] for one in kinds(objects, "PodDisruptionBudget"))


def test_what_a_submitter_may_do_is_little():
    (role,) = kinds(rendered("everything"), "Role")
    may = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert set(may) == {"rayjobs", "configmaps", "pods", "pods/log", "workloads"}
    assert "secrets" not in may
    assert not kinds(rendered("gpu-production"), "Role"), "nobody is named there"


def test_dashboard_and_alerts_know_our_gauges():
    from pipeline.cluster.gauges import GAUGES

    objects = rendered("everything")
    (dashboard,) = [made for made in kinds(objects, "ConfigMap") if made["metadata"]["name"].endswith("-dashboard")]
    drawn = set(re.findall(r"ray_dvae_(\w+)", dashboard["data"]["denoising-vae.json"]))
    woken = set(re.findall(r"ray_dvae_(\w+)", json.dumps(kinds(objects, "PrometheusRule"))))
    assert drawn == set(GAUGES)
    assert woken <= set(GAUGES)
    assert woken


def test_kueue_and_the_autoscaler_go_together():
    def cluster(**kueue: Any) -> Object:
        (made,) = kinds(
            render({**values_of("kueue"), "kueue": {"enabled": True, "queueName": "q", **kueue}}), "RayCluster"
        )
        return made

    fixed, elastic = cluster(elastic=False), cluster(elastic=True)
    assert fixed["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert "enableInTreeAutoscaling" not in fixed["spec"]
    assert elastic["spec"]["enableInTreeAutoscaling"] is True
    assert elastic["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}


def test_a_drain_ends_before_the_pod_does():
    for case in CASES:
        (cluster,) = kinds(rendered(case), "RayCluster")
        for group in cluster["spec"]["workerGroupSpecs"]:
            spec = group["template"]["spec"]
            command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert command[:4] == ["python", "-m", "deploy", "drain"]
            assert 0 < int(command[-1]) < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(
    ("tmp", "disk"), [({}, "10240Mi"), ({"size": "30Gi"}, "32768Mi"), ({"storageClassName": "fast"}, "2Gi")]
)
def test_mlflow_has_room_for_what_passes_through_it(tmp: dict[str, str], disk: str) -> None:
    """An emptyDir counts as ephemeral storage of its pod, which was ended for one upload of a generator of size XL."""
    deployment = named(render(values_of("trial") | {"mlflow": {"tmp": tmp}}), "Deployment", "-mlflow")
    spec = deployment["spec"]["template"]["spec"]
    (volume,) = [one for one in spec["volumes"] if one["name"] == "tmp"]
    size = tmp.get("size", "8Gi")
    if "storageClassName" in tmp:
        claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
        assert claim["resources"]["requests"]["storage"] == size
        assert claim["storageClassName"] == "fast"
    else:
        assert volume["emptyDir"] == {"sizeLimit": size}
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["resources"]["limits"]["ephemeral-storage"] == disk
        assert container["resources"]["requests"]["ephemeral-storage"] == disk


@pytest.mark.parametrize(
    ("given", "options"),
    [({}, []), ({"enabled": True}, ["--from-champion"]),
     ({"enabled": True, "steps": 7}, ["--from-champion", "--steps", "7"]), ({"steps": 7}, [])],
)  # fmt: skip
def test_retrain_starts_from_the_champion_where_that_is_asked(given, options):
    retrain = {"enabled": True, "preset": "table1/f16d32-fda", "set": ["seed=2"], "fromChampion": given}
    _, spec = next(
        pair for where, pair in pod_specs(render({**GOOD, "retrain": retrain})).items() if "CronJob" in where
    )
    command = spec["containers"][0]["command"]
    assert command[command.index("seed=2") + 1 :] == options
