"""Names that YAML reads as something else arrive as they were given; names that are too long stay apart."""

import copy
import json
import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.api_server import ApiServer
from tests.support.chart import (
    GOOD,
    Object,
    kinds,
    named,
    needed_helm3,
    parsed,
    pod_specs,
    render,
    render_by_helm3,
    texts,
    values_of,
)

RELEASES = ("on", "no", "y", "1234", "1e5", "0123", "null")
PLURALS = {
    "ConfigMap": "v1/configmaps",
    "CronJob": "batch/v1/cronjobs",
    "Deployment": "apps/v1/deployments",
    "NetworkPolicy": "networking.k8s.io/v1/networkpolicies",
    "PersistentVolumeClaim": "v1/persistentvolumeclaims",
    "Pod": "v1/pods",
    "PodDisruptionBudget": "policy/v1/poddisruptionbudgets",
    "RayCluster": "ray.io/v1/rayclusters",
    "RayJob": "ray.io/v1/rayjobs",
    "Role": "rbac.authorization.k8s.io/v1/roles",
    "RoleBinding": "rbac.authorization.k8s.io/v1/rolebindings",
    "Service": "v1/services",
    "ServiceAccount": "v1/serviceaccounts",
}
# Each name that a value may have, as one that YAML 1.1 (or Kubernetes' reader of it) takes for no text.
ODD: dict[str, Any] = {
    "image": {"repository": "10", "tag": "30", "pullSecrets": ["0777"], "digest": ""},
    "s3": {
        "existingSecret": "0123",
        "region": "1",
        "env": {"A": {"valueFrom": {"secretKeyRef": {"name": "1e1", "key": "2"}}}},
    },
    "auth": {"existingSecret": "123456"},
    "commonLabels": {"team": "on", "cost": "0123"},
    "serviceAccount": {"ray": {"annotations": {"role": "1"}}},
    "rbac": {"submitters": [{"kind": "ServiceAccount", "name": "1", "namespace": "no"}]},
    "head": {
        "priorityClassName": "1e6",
        "podLabels": {"y": "n"},
        "annotations": {"a": "true"},
        "gcsFaultTolerance": {"existingSecret": "0b1", "secretKey": "1", "usernameKey": "2"},
    },
    "groupDefaults": {
        "priorityClassName": "1234",
        "mirror": {"storageClassName": "1234"},
        "extraVolumes": [{"name": "1", "secret": {"secretName": "0123"}}],
        "extraVolumeMounts": [{"name": "1", "mountPath": "/etc/more", "readOnly": True}],
    },
    "groups": {"on": {"resources": {"cpu": "1", "memory": "4Gi"}}},
    "stagePools": {"prepare": "on"},
    "mlflow": {
        "priorityClassName": "0x10",
        "database": {"sqlite": {"storageClassName": "1234"}},
        "basicAuth": {"existingSecret": "0o17"},
        "env": {"B": "no"},
    },
    "rayjob": {"priorityClassName": "2025", "podLabels": {"1": "2"}},
    "retrain": {"priorityClassName": "no", "timeZone": "UTC", "podLabels": {"no": "yes"}},
    "kueue": {"queueName": "2025"},
}


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(values)
    for key, value in over.items():
        made[key] = merged(made.get(key, {}), value) if isinstance(value, dict) else value
    return made


def odd_values(release: str) -> dict[str, Any]:
    """Every switch on; a release whose name begins with a digit needs another for its objects."""
    values = merged(values_of("everything"), ODD)
    return merged(values, {"fullnameOverride": release if release.isalpha() else "y"})


def strings_in(part: Any) -> set[str]:
    """Every text that is a value."""
    if isinstance(part, dict):
        return set().union(*map(strings_in, part.values()))
    if isinstance(part, list):
        return set().union(*map(strings_in, part))
    return {part} if isinstance(part, str) else set()


def names_in(part: Any) -> list[Any]:
    """Every value below a key that holds a name, whatever YAML made of it."""
    found: list[Any] = []
    if isinstance(part, dict):
        for key, value in part.items():
            if re.search("[nN]ame$|^(key|labels|annotations|matchLabels|image|timeZone)$", str(key)):
                found += list(value.values()) if isinstance(value, dict) else [value]
            found += names_in(value)
    elif isinstance(part, list):
        for value in part:
            found += names_in(value)
    return found


def check(objects: list[Object], release: str) -> None:
    assert len(objects) > 20
    job = yaml.safe_load(named(objects, "ConfigMap", "-rayjob")["data"]["rayjob.yaml"])
    for made in [*objects, job]:
        wrong = [one for one in names_in(made) if not isinstance(one, (str, list, dict))]
        assert not wrong, (made["kind"], made["metadata"]["name"], wrong)
        assert made["metadata"]["labels"]["app.kubernetes.io/instance"] == release
    given = strings_in(ODD) - {"", "10", "30"} | {"10:30"}
    assert not given - strings_in(
        [objects, job, yaml.safe_load(named(objects, "ConfigMap", "-site")["data"]["site.yaml"])]
    )


@pytest.mark.parametrize("release", RELEASES)
def test_no_name_is_read_as_something_else(release):
    check(render(odd_values(release), release), release)


@pytest.mark.parametrize("release", ["on", "1e5"])
def test_nor_by_helm_3(release, tmp_path):
    text = render_by_helm3(needed_helm3(), odd_values(release), tmp_path, release)
    check([made for made in yaml.safe_load_all(text) if made], release)


@pytest.mark.slow
@pytest.mark.parametrize("release", ["on", "1234"])
def test_kubernetes_takes_them(release, api_server: ApiServer):
    """It reads YAML by another reader than ours, to which `y` is no text either."""
    namespace = api_server.namespace()
    files = texts(odd_values(release), release)
    documents = [part for text in files.values() for part in re.split(r"^---\n", text, flags=re.MULTILINE)]
    documents.append(named(parsed(files), "ConfigMap", "-rayjob")["data"]["rayjob.yaml"])
    taken = 0
    for text in documents:
        made = yaml.safe_load(text)
        if made and made["kind"] in PLURALS:
            answer = api_server.try_yaml(namespace, PLURALS[made["kind"]], text)
            assert answer.ok, (made["kind"], made["metadata"]["name"], answer.text[:500])
            assert answer.json()["metadata"]["labels"]["app.kubernetes.io/instance"] == release
            taken += 1
    assert taken > 20


def expanded(argument: str) -> str:
    """As the kubelet expands it, in a container that has these variables."""
    variables = {"HOME": "/tmp"}
    return re.sub(r"\$\$|\$\((\w+)\)", lambda one: variables.get(one[1], one[0]) if one[1] else "$", argument)


def test_dollar_signs_in_arguments_are_literal():
    odd = "q3-$(HOME)-${HOME}-$HOME-$$-$"
    values = merged(
        values_of("everything"), {"site": {"root": f"s3://b/{odd}"}, "retrain": {"set": [f"tracking.experiment={odd}"]}}
    )
    pods = pod_specs(render(values))
    (retrain,) = [spec for where, (_, spec) in pods.items() if where.startswith("CronJob")]
    assert expanded(retrain["containers"][0]["command"][-1]) == f"tracking.experiment={odd}"
    (mlflow,) = [spec for where, (_, spec) in pods.items() if where.startswith("Deployment")]
    assert f"--artifacts-destination=s3://b/{odd}/mlflow" in map(expanded, mlflow["containers"][0]["command"])


# --- long names ---

LONG = "a-platform-team-with-a-long-name-in-production"  # 46 letters


def names(objects: list[Object]) -> set[str]:
    return {f"{made['kind']}/{made['metadata']['name']}" for made in objects}


def test_two_long_releases_do_not_collide():
    values = values_of("everything") | {"fullnameOverride": ""}
    one, other = (render(values, f"{LONG}-{ending}") for ending in ("eu", "us"))
    assert not names(one) & names(other)
    for objects in (one, other):
        (cluster,) = kinds(objects, "RayCluster")
        assert len(cluster["metadata"]["name"]) <= 40, "KubeRay adds to it"
        assert cluster["metadata"]["name"].startswith("a-platform-team-with-a-long-nam")
        assert "a-platform-team-with-a-long-nam" in json.dumps(pod_specs(objects))


def test_nor_do_long_overrides_or_dashboards():
    def uid(values: dict[str, Any], release: str) -> str:
        dashboard = named(render(values, release), "ConfigMap", "-dashboard")["data"]["denoising-vae.json"]
        made: str = json.loads(dashboard)["uid"]
        return made

    values = values_of("everything")
    one, other = (render({**values, "fullnameOverride": f"{LONG}-{ending}"}) for ending in ("eu", "us"))
    assert not names(one) & names(other)
    uids = {uid({**values, "fullnameOverride": ""}, f"{'x' * 24}-{ending}") for ending in ("eu", "us")}
    assert len(uids) == 2
    assert all(len(one) <= 40 for one in uids), "Grafana's most"


@pytest.mark.parametrize(
    ("release", "override", "name"),
    [
        ("r", "", "r-denoising-vae"),
        ("my-denoising-vae-eu", "", "my-denoising-vae-eu"),
        ("x" * 26, "", f"{'x' * 26}-denoising-vae"),  # 40 letters
        ("r", "a" * 40, "a" * 40),
    ],
)
def test_a_name_that_fits_stays_as_it_is(release, override, name):
    """An upgrade renames nothing."""
    (cluster,) = kinds(render({**GOOD, "fullnameOverride": override}, release), "RayCluster")
    assert cluster["metadata"]["name"] == name


def test_helm_3_makes_the_same_of_a_long_name(tmp_path):
    (cluster,) = kinds(render(GOOD, f"{LONG}-eu"), "RayCluster")
    text = render_by_helm3(needed_helm3(), GOOD, tmp_path, f"{LONG}-eu")
    assert f'name: "{cluster["metadata"]["name"]}"' in text


def test_a_release_that_is_no_service_name_is_refused(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render_by_helm3(needed_helm3(), GOOD, tmp_path, "1234")
    assert 'fullnameOverride: "1234-denoising-vae" is not a valid Service name' in refused.value.stderr
