"""What a hardened cluster asks for: security contexts, labels, volumes, variables, priorities and disk of one's own.

They reach every pod, and none opens what the chart keeps closed."""

import copy
import json
from typing import Any

import jsonschema
import kubernetes
import kubernetes_validate
import pytest
from helm_python import HelmError

from tests.chart.test_chart import CORE, ray_schema
from tests.chart.test_policies import matches
from tests.support.api_server import ApiServer
from tests.support.chart import GOOD, Object, containers, kinds, named, pod_specs, rayjob_in, render, values_of

PARTS = ("head", "groupDefaults", "mlflow", "retrain", "rayjob")
TOKEN = {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key"}}}
OWN: dict[str, Any] = {
    "podLabels": {"team": "vision", "of": "{}"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "priorityClassName": "research",
    "env": {"WANDB_API_KEY": {"valueFrom": TOKEN["valueFrom"]}, "LEVEL": 3},
    "extraVolumes": [{"name": "wheels", "persistentVolumeClaim": {"claimName": "wheels", "readOnly": True}}],
    "extraVolumeMounts": [{"name": "wheels", "mountPath": "/srv/wheels", "readOnly": True}],
}


def hardened() -> dict[str, Any]:
    values = copy.deepcopy(values_of("everything"))
    values |= {
        "commonLabels": {"cost-center": "0123", "team": "everybody"},
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None, "supplementalGroups": [5000]},
        "securityContext": {"seLinuxOptions": {"level": "s0:c1,c2"}},
    }
    for part in PARTS:
        values[part] = {**values.get(part, {}), **copy.deepcopy(OWN)}
        values[part]["podLabels"]["of"] = part
    values["groupDefaults"]["resources"] = {"ephemeral-storage": "500Gi"}
    return values


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render(hardened())


def our_pods(objects: list[Object]) -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
    """All but the pod of `helm test`, which lasts seconds."""
    return {where: pod for where, pod in pod_specs(objects).items() if not where.startswith("Pod ")}


def test_what_is_made_of_them_is_valid(objects):
    for made in objects:
        if made["apiVersion"] in CORE:
            kubernetes_validate.validate(made, "1.37", strict=True)
    (cluster,) = kinds(objects, "RayCluster")
    jsonschema.Draft202012Validator(ray_schema("rayclusters")).validate(cluster)
    job = rayjob_in(named(objects, "ConfigMap", "-rayjob"))
    jsonschema.Draft202012Validator(ray_schema("rayjobs")).validate(job)


def test_each_pod_has_them(objects):
    pods = our_pods(objects)
    assert len(pods) > 9
    for where, (labels, spec) in pods.items():
        assert labels["team"] == "vision", where
        assert labels["of"] in PARTS, where
        assert labels["cost-center"] == "0123", where
        assert spec["priorityClassName"] == "research", where
        assert [one for one in spec["volumes"] if one["name"] == "wheels"] == OWN["extraVolumes"], where
        for container in containers(spec):
            assert TOKEN in container["env"], where
            assert {"name": "LEVEL", "value": "3"} in container["env"], where
            assert OWN["extraVolumeMounts"][0] in container["volumeMounts"], where
            resources = container["resources"]
            assert resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"], where
            names = [one["name"] for one in container["env"]]
            assert len(names) == len(set(names)), "server-side apply refuses a variable that is there twice"


def test_every_object_has_the_common_labels(objects):
    job = rayjob_in(named(objects, "ConfigMap", "-rayjob"))
    for made in [*objects, job]:
        labels = made["metadata"]["labels"]
        assert labels["cost-center"] == "0123", made["metadata"]["name"]
        assert labels["app.kubernetes.io/name"] == "denoising-vae"
    for deployment in kinds(objects, "Deployment"):
        assert "cost-center" not in deployment["spec"]["selector"]["matchLabels"], "it may not change later"


def test_the_cluster_chooses_who_runs_and_everything_else_stays_closed(objects):
    for where, (_, spec) in pod_specs(objects).items():
        security = spec["securityContext"]
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security), where
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["supplementalGroups"] == [5000]
        for container in containers(spec):
            own = container["securityContext"]
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["seLinuxOptions"] == {"level": "s0:c1,c2"}
            variables = {one["name"]: one.get("value") for one in container["env"]}
            assert variables["HOME"] == "/tmp", "a UID of the cluster's has none"
    (cluster,) = kinds(objects, "RayCluster")
    autoscaler = cluster["spec"]["autoscalerOptions"]["securityContext"]
    assert autoscaler["seLinuxOptions"] == {"level": "s0:c1,c2"}
    assert autoscaler["allowPrivilegeEscalation"] is False


def test_policies_find_the_same_pods_as_before(objects):
    """By the labels that nobody may set otherwise."""
    plain = render(values_of("everything"))
    policies = {one["metadata"]["name"]: one["spec"] for one in kinds(plain, "NetworkPolicy")}
    assert policies == {one["metadata"]["name"]: one["spec"] for one in kinds(objects, "NetworkPolicy")}
    before, after = pod_specs(plain), pod_specs(objects)
    for name, spec in policies.items():
        found = [{where for where, (labels, _) in pods.items() if matches(labels, spec["podSelector"])}
                 for pods in (before, after)]  # fmt: skip
        assert found[0] == found[1], name


def test_a_groups_own_come_before_the_defaults():
    values = {
        **GOOD,
        "s3": {"env": {"LEVEL": "all", "OTHER": "1"}},
        "groupDefaults": {"podLabels": {"a": "1", "b": "1"}},
        "groups": {"cpu": {"podLabels": {"b": "2"}, "env": {"LEVEL": "own"}}},
    }
    pods = our_pods(render(values))
    labels, spec = pods["RayCluster r-denoising-vae cpu"]
    assert (labels["a"], labels["b"]) == ("1", "2")
    variables = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert (variables["LEVEL"], variables["OTHER"]) == ("own", "1")
    assert pods["RayCluster r-denoising-vae gpu-sit"][0]["b"] == "1"


SOURCES: dict[str, dict[str, Any]] = {
    "secretKeyRef": {"name": "s", "key": "k"},
    "configMapKeyRef": {"name": "c", "key": "k"},
    "fieldRef": {"fieldPath": "status.podIP"},
    "resourceFieldRef": {"resource": "limits.memory"},
}


@pytest.mark.parametrize("below", ["s3", "groupDefaults"])
def test_a_variable_takes_the_place_of_another_as_a_whole(below):
    """No mixture of two sources, which Kubernetes refuses; and an empty text, 0 and false are values."""
    sources = [{"valueFrom": {kind: source}} for kind, source in SOURCES.items()]
    own = {f"A{number}": value for number, value in enumerate([*sources, "", 0, False, "x"])}
    for other in ({"valueFrom": {"secretKeyRef": {"name": "other", "key": "other"}}}, "other", 1):
        values = {below: {"env": dict.fromkeys(own, other)}, "groups": {"cpu": {"env": own}}}
        _, spec = our_pods(render({**GOOD, **copy.deepcopy(values)}))["RayCluster r-denoising-vae cpu"]
        made = {one.pop("name"): one for one in spec["containers"][0]["env"]}
        assert [made[name] for name in own] == [*sources, *({"value": text} for text in ("", "0", "false", "x"))]


def test_an_empty_label_is_one():
    values = {
        "commonLabels": {"team": "everybody"},
        "groups": {
            "cpu": {
                "podLabels": {"team": ""},
                "nodeSelector": {"pool": "standing"},
                "spot": {"enabled": True, "nodeSelector": {"pool": ""}},
            }
        },
    }
    labels, spec = our_pods(render({**GOOD, **values}))["RayCluster r-denoising-vae cpu"]
    assert labels["team"] == ""
    assert spec["nodeSelector"] == {"pool": ""}


def test_the_submitter_has_the_heads_priority_unless_it_has_one():
    def priority(**rayjob: str) -> str:
        made = render({**GOOD, "head": {"priorityClassName": "high"}, "rayjob": rayjob})
        name: str = our_pods(made)["RayJob submitter"][1]["priorityClassName"]
        return name

    assert priority() == "high"
    assert priority(priorityClassName="low") == "low"


@pytest.mark.slow
def test_kubernetes_admits_each_pod_at_the_level_restricted(objects, api_server: ApiServer):
    core = kubernetes.client.CoreV1Api(api_server.client())
    classes = kubernetes.client.SchedulingV1Api(api_server.client())
    namespace = api_server.namespace()
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.patch_namespace(namespace, {"metadata": {"labels": level}})
    classes.create_priority_class({"metadata": {"name": "research"}, "value": 1})

    def admit(spec: dict[str, Any], labels: dict[str, str]) -> Any:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-", "labels": labels}, "spec": spec}
        return api_server.try_yaml(namespace, "v1/pods", json.dumps(pod))

    try:
        pods = {**pod_specs(objects), **pod_specs(render(values_of("gpu-production")))}
        for where, (labels, spec) in pods.items():
            answer = admit(spec, labels)
            assert answer.ok, (where, answer.text)
        assert len(pods) > 15
        labels, spec = next(iter(pods.values()))
        assert "violates PodSecurity" in admit({**spec, "hostNetwork": True}, labels).text
    finally:
        classes.delete_priority_class("research")


# --- refusals ---


def volume(**source: Any) -> dict[str, Any]:
    return {"extraVolumes": [{"name": "v", **source}]}


def mount(path: str, **more: Any) -> dict[str, Any]:
    return {**volume(emptyDir={}), "extraVolumeMounts": [{"name": "v", "mountPath": path, **more}]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"podSecurityContext": {"runAsNonRoot": False}}, "podSecurityContext.runAsNonRoot: has to be true.*; remove it"),
    ({"podSecurityContext": {"runAsUser": 0}}, "podSecurityContext.runAsUser: 0 is root"),
    ({"podSecurityContext": {"sysctls": []}}, "podSecurityContext.sysctls: not allowed.*What may be set: appArmor"),
    (
        {"podSecurityContext": {"seccompProfile": {"type": "Unconfined"}}},
        "seccompProfile.type: has to be RuntimeDefault",
    ),
    ({"podSecurityContext": {"seccompProfile": "RuntimeDefault"}}, "got string, want null or object"),
    ({"securityContext": {"privileged": True}}, "securityContext.privileged: not allowed: .* restricted"),
    ({"securityContext": {"allowPrivilegeEscalation": True}}, "allowPrivilegeEscalation: has to be false"),
    ({"securityContext": {"readOnlyRootFilesystem": False}}, "readOnlyRootFilesystem: has to be true"),
    ({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}, "capabilities: has to be"),
    ({"securityContext": {"procMount": "Unmasked"}}, "securityContext.procMount: not allowed"),
    ({"securityContext": {"runAsUser": 0}}, "securityContext.runAsUser: 0 is root"),
    ({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}, "seLinuxOptions: only level"),
    (
        {"commonLabels": {"app.kubernetes.io/instance": "other"}},
        "commonLabels: app.kubernetes.io/instance is the chart's",
    ),
    ({"head": {"podLabels": {"ray.io/cluster": "x"}}}, "head.podLabels: ray.io/cluster is the chart's own"),
    ({"groups": {"cpu": {"podLabels": {"denoising-vae/ray-node": "head"}}}}, "groups.cpu.podLabels: denoising-vae/ray"),
    (
        {"mlflow": {"podLabels": {"app.kubernetes.io/component": "ray"}}},
        "mlflow.podLabels: app.kubernetes.io/component",
    ),
    ({"rayjob": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "rayjob.podLabels"),
    ({"retrain": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "retrain.podLabels"),
    ({"monitoring": {"alerts": {"labels": {"helm.sh/chart": "x"}}}}, "monitoring.alerts.labels: helm.sh/chart"),
    (
        {"head": volume(hostPath={"path": "/"})},
        "head.extraVolumes: v is of the type hostPath; .* restricted has configMap",
    ),
    ({"mlflow": volume(nfs={"server": "s", "path": "/"})}, "mlflow.extraVolumes: v is of the type nfs"),
    ({"rayjob": volume()}, "rayjob.extraVolumes: v is of the type none"),
    ({"head": volume(emptyDir={}, secret={"secretName": "s"})}, "of the type emptyDir and secret"),
    (
        {"groupDefaults": volume(projected={"sources": [{"serviceAccountToken": {"path": "t"}}]})},
        "groups.cpu.extraVolumes: v has a service account's token without an audience",
    ),
    (
        {
            "head": volume(
                projected={"sources": [{"serviceAccountToken": {"audience": "https://kubernetes.default.svc"}}]}
            )
        },
        "v has a service account's token for https://kubernetes.default.svc, which opens Kubernetes' API",
    ),
    ({"head": volume(projected=None)}, "projected.*got null, want object"),
    ({"head": volume(projected={"sources": [{"serviceAccountToken": None}]})}, "got null, want object"),
    ({"head": volume(configMap=None)}, "configMap.*got null, want object"),
    ({"head": {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}}, "head.extraVolumes: the name tmp is taken"),
    ({"head": {"extraVolumeMounts": [{"name": "v", "mountPath": "/x"}]}}, "no volume of head.extraVolumes is named v"),
    ({"head": mount("/tmp")}, "head.extraVolumeMounts: a mount at /tmp would lie over or inside of /tmp"),
    ({"head": mount("//tmp")}, "mountPath.*does not match"),
    ({"head": mount("/tmp/ray/")}, "a mount at /tmp/ray would lie over or inside of /tmp"),
    ({"groupDefaults": mount("/etc")}, "groups.cpu.extraVolumeMounts: a mount at /etc would"),
    ({"retrain": mount("/etc/dvae")}, "retrain.extraVolumeMounts: a mount at /etc/dvae would"),
    ({"mlflow": mount("/data/x")}, "mlflow.extraVolumeMounts: a mount at /data/x would lie over or inside of /data"),
    ({"head": mount("/")}, "head.extraVolumeMounts: a mount at / would"),
    ({"head": mount("/srv/../tmp")}, "head.extraVolumeMounts: a mount at /srv/../tmp would"),
    ({"head": mount("/opt/venv/lib")}, "inside of /opt/venv"),
    ({"head": mount("/var/run/secrets/x")}, "inside of /var/run/secrets"),
    ({"head": mount("/srv", mountPropagation="Bidirectional")}, "mountPropagation"),
    ({"head": {"env": {"DVAE_SITE": "/x"}}}, "head.env.DVAE_SITE: this variable is the chart's"),
    ({"groups": {"cpu": {"env": {"RAY_AUTH_MODE": "disabled"}}}}, "groups.cpu.env.RAY_AUTH_MODE"),
    ({"mlflow": {"env": {"MLFLOW_BACKEND_STORE_URI": "x"}}}, "mlflow.env.MLFLOW_BACKEND_STORE_URI"),
    ({"retrain": {"env": {"RAY_API_SERVER_ADDRESS": "x"}}}, "retrain.env.RAY_API_SERVER_ADDRESS"),
    ({"s3": {"env": {"AWS_REGION": "x"}}}, "s3.env.AWS_REGION: .*set the value that it comes from"),
    ({"head": {"env": {"HF_TOKEN": "hf_1234"}}}, "head.env.HF_TOKEN: a secret would lie in the release.*secretKeyRef"),
    ({"head": {"env": {"A": {"valueFrom": {"secretKeyRef": {"name": "s"}}}}}}, "key"),
    ({"head": {"env": {"A": {"valueFrom": {"fieldRef": {}}}}}}, "missing property 'fieldPath'"),
    ({"head": {"env": {"A": {"valueFrom": {"resourceFieldRef": {"divisor": 1}}}}}}, "missing property 'resource'"),
    ({"head": {"env": {"A": {"value": "x"}}}}, "valueFrom"),
    ({"head": {"shm": "64Mi"}}, "head.shm: 64Mi is too small: .* 75Mi; set 80Mi or more"),
    ({"groups": {"cpu": {"shm": "78Mi"}}}, "groups.cpu.shm: 78Mi is too small"),
    (
        {"head": {"resources": {"cpu": "1", "memory": "4Gi", "ephemeral-storage": "1Gi"}}},
        "head.resources.ephemeral-storage: .* logs and /tmp need, or remove it",
    ),
    ({"groups": {"gpu-sit": {"resources": {"ephemeral-storage": "200Gi"}}}}, "200Gi .* the mirror's storageClassName"),
    ({"groups": {"new": {"max": 1}}}, "groups.new.resources: set cpu and memory"),
]


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=lambda one: one if isinstance(one, str) else "")
def test_what_would_open_something_is_refused(values, words):
    with pytest.raises(HelmError, match=words):
        render({**copy.deepcopy(GOOD), **copy.deepcopy(values)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"head": mount("/etc/ssl/mine")},
        {"groupDefaults": mount("/data")},
        {"head": mount("/srv/models/v1.2/")},
        {"head": volume(emptyDir=None)},
        {"head": {"env": {"TOKENIZERS_PARALLELISM": "false"}}},
        {"head": {"shm": "80Mi"}},
        {"podSecurityContext": {"runAsUser": 1000650000, "runAsNonRoot": True}},
        {"securityContext": {"capabilities": {"drop": ["ALL"]}, "appArmorProfile": {"type": "RuntimeDefault"}}},
        {"groupDefaults": volume(projected={"sources": [{"serviceAccountToken": {"path": "t", "audience": "sts"}}]})},
        {"groups": {"gpu-sit": {"resources": {"ephemeral-storage": "220Gi"}}}},
    ],
)
def test_and_what_opens_nothing_is_taken(values):
    objects = render({**copy.deepcopy(GOOD), **copy.deepcopy(values)})
    for made in objects:
        if made["apiVersion"] in CORE:
            kubernetes_validate.validate(made, "1.37", strict=True)
    (cluster,) = kinds(objects, "RayCluster")
    jsonschema.Draft202012Validator(ray_schema("rayclusters")).validate(cluster)
