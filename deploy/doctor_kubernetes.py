"""Doctor's checks of a Kubernetes cluster: what the chart needs there, and the state of a release.

Each returns a line about what it found. It raises CheckFailedError with a hint, or Skipped if there is nothing to do.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from deploy.findings import CheckFailedError, Skipped
from deploy.kube import KUEUE_VERSIONS, Kube, Object, pods_refused, stuck
from deploy.rayjob import QUEUE

_KUBERAY = (1, 6)  # the first with authOptions.secretName
_OPERATORS = "app.kubernetes.io/name in (kuberay-operator, kuberay)"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def crds(kube: Kube) -> str:
    """KubeRay's CRDs are installed, in a version that knows the fields of the chart's objects."""
    for plural in ("rayclusters", "rayjobs"):
        found = kube.get(f"{_CRDS}/{plural}.ray.io")
        if found is None:
            raise CheckFailedError(f"{plural}.ray.io is missing", "Install KubeRay's operator of version 1.6 or newer.")
        if "secretName" not in _auth_options(found):
            raise CheckFailedError(
                f"{plural}.ray.io has no authOptions.secretName: it is older than KubeRay 1.6",
                "Apply the CRDs of the operator's version: `helm upgrade` does not update them.",
            )
    return "rayclusters and rayjobs, of version 1.6 or newer"


def _auth_options(crd: Object) -> Object:
    (served,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"] or [{}]
    properties: Any = served.get("schema", {}).get("openAPIV3Schema", {}).get("properties", {})
    properties = properties.get("spec", {}).get("properties", {})
    properties = properties.get("rayClusterSpec", {}).get("properties", properties)
    found: Object = properties.get("authOptions", {}).get("properties", {})
    return found


def operator(kube: Kube) -> str:
    """KubeRay's operator runs, in version 1.6 or newer, and watches this namespace."""
    found = kube.objects("/apis/apps/v1/deployments", labelSelector=_OPERATORS)
    if not found:
        raise CheckFailedError(
            "no KubeRay operator runs in this cluster", "Install KubeRay's operator of version 1.6 or newer."
        )
    deployment = found[0]
    where = f"{deployment['metadata']['namespace']}/{deployment['metadata']['name']}"
    version = _operator_version(deployment)
    known = tuple(int(part) for part in version.removeprefix("v").split(".")[:2] if part.isdigit())
    if known and known < _KUBERAY:
        raise CheckFailedError(
            f"{where} is {version}, which is too old", "Update KubeRay to 1.6 or newer, its CRDs first."
        )
    if not deployment.get("status", {}).get("availableReplicas"):
        raise CheckFailedError(
            f"{where} has no ready pod", f"See `kubectl -n {deployment['metadata']['namespace']} get pods`."
        )
    watched = _watched(deployment)
    if watched and kube.namespace not in watched:
        raise CheckFailedError(f"{where} does not watch the namespace {kube.namespace}", "Add it to --watch-namespace.")
    note = "" if watched is not None else "; the namespaces it watches are set by its --config file"
    return f"{version or 'unknown version'}, {where}{note}"


def _operator_version(deployment: Object) -> str:
    image = str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    name, _, tag = image.partition("@")[0].rpartition(":")
    if name and "/" not in tag:
        return tag
    chart = str(deployment["metadata"].get("labels", {}).get("helm.sh/chart", ""))
    return chart.removeprefix("kuberay-operator-")


def _watched(deployment: Object) -> list[str] | None:
    """The namespaces that the operator watches, empty for all; None if its --config file sets them."""
    words = [str(word) for word in deployment["spec"]["template"]["spec"]["containers"][0].get("args", [])]
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if name == "config":
            return None
        if name == "watch-namespace":
            return [one for one in (value if equals else following).split(",") if one]
    return []


def secrets(kube: Kube, instance: str, spec: Object) -> str:
    """Every Secret that a pod of the release refers to exists and has the key that is used."""
    deployments = _deployments(kube, instance)
    standing = kube.objects(_rayclusters(kube), labelSelector=_release(instance))
    needed = {(spec["authOptions"]["secretName"], "auth_token")}
    for part in (spec, [one["spec"] for one in (*deployments, *standing)]):
        needed |= {(one["name"], one["key"]) for one in _references(part, "secretKeyRef")}
    for name, key in sorted(needed):
        found = kube.get(f"/api/v1/namespaces/{kube.namespace}/secrets/{name}")
        if found is None:
            raise CheckFailedError(
                f"Secret {name} is missing", f"Run `kubectl -n {kube.namespace} create secret generic {name} ...`."
            )
        if key not in found.get("data", {}):
            raise CheckFailedError(
                f"Secret {name} has no key {key}", "See docs/operations.md for the keys of each Secret."
            )
    return ", ".join(sorted({name for name, _ in needed}))


def _references(part: Any, key: str) -> Iterator[Object]:
    if isinstance(part, dict):
        if key in part:
            yield part[key]
        for value in part.values():
            yield from _references(value, key)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value, key)


def _rayclusters(kube: Kube) -> str:
    return f"/apis/ray.io/v1/namespaces/{kube.namespace}/rayclusters"


def _deployments(kube: Kube, instance: str) -> list[Object]:
    return kube.objects(f"/apis/apps/v1/namespaces/{kube.namespace}/deployments", labelSelector=_release(instance))


def _release(instance: str) -> str:
    return f"app.kubernetes.io/name=denoising-vae,app.kubernetes.io/instance={instance}"


def volumes(kube: Kube, instance: str, spec: Object) -> str:
    """Every claim is bound, and the storage classes of unbound and future claims exist."""
    claims = kube.objects(
        f"/api/v1/namespaces/{kube.namespace}/persistentvolumeclaims", labelSelector=_release(instance)
    )
    unbound = [one for one in claims if one.get("status", {}).get("phase") != "Bound"]
    wanted = {one["spec"].get("storageClassName") for one in unbound}  # a bound claim no longer needs its class
    wanted |= {one["spec"].get("storageClassName") for one in _references(spec, "volumeClaimTemplate")}
    existing = {one["metadata"]["name"] for one in kube.objects("/apis/storage.k8s.io/v1/storageclasses")}
    for name in sorted(one for one in wanted if one):
        if name not in existing:
            hint = f"Use one of {', '.join(sorted(existing))}." if existing else "Create one: the cluster has none."
            raise CheckFailedError(f"storage class {name} does not exist", hint)
    waiting = [one["metadata"]["name"] for one in unbound]
    if waiting:
        raise CheckFailedError(
            f"no volume is bound yet to {', '.join(waiting)}",
            f"See `kubectl -n {kube.namespace} describe pvc {waiting[0]}`.",
        )
    if not (claims or wanted):
        raise Skipped("no volumes are used")
    classes = ", ".join(sorted(one for one in wanted if one))
    return f"{len(claims)} bound" + (f"; storage class {classes} for new ones" if classes else "")


def nodes(kube: Kube, group: Object, on_demand: bool) -> str:
    """A node exists that can run a pod of this group, by its labels, taints and devices."""
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    devices = {name: int(count) for name, count in limits.items() if "/" in name}  # VENDOR/NAME: GPUs, slices, ...
    nodes = [node for node in kube.objects("/api/v1/nodes") if _is_ready(node)]
    fitting = [node for node in nodes if _accepts(node, pod)]
    holding = [node for node in fitting if all(_has(node, name) >= count for name, count in devices.items())]
    what = " and ".join(f"{count} {name}" for name, count in devices.items())
    if holding:
        return f"{len(holding)} of {len(nodes)} nodes" + (f", with {what} or more" if devices else "")
    if on_demand:
        raise Skipped("no such node now; nodes are added on demand")
    why = (
        f"none of the {len(nodes)} nodes has {what}" if fitting else f"none of the {len(nodes)} nodes accepts its pods"
    )
    raise CheckFailedError(
        why + (f" (selector {pod['nodeSelector']})" if pod.get("nodeSelector") and not fitting else ""),
        f"Add such nodes{' and their device plugin' if devices else ''}, "
        f"set groups.{group['groupName']}.enabled=false, "
        "or give --nodes-on-demand if nodes are added when pods request them.",
    )


def _is_ready(node: Object) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and not node.get("spec", {}).get("unschedulable")


def _accepts(node: Object, pod: Object) -> bool:
    labels = node["metadata"].get("labels", {})
    if not pod.get("nodeSelector", {}).items() <= labels.items():
        return False
    return all(
        any(_tolerates(one, taint) for one in pod.get("tolerations", []))
        for taint in node.get("spec", {}).get("taints", [])
        if taint["effect"] != "PreferNoSchedule"
    )


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def _has(node: Object, resource: str) -> int:
    return int(node["status"].get("allocatable", {}).get(resource, 0))


def queue(kube: Kube, template: Object) -> str:
    """The LocalQueue exists and is active."""
    name = template["metadata"]["labels"].get(QUEUE)
    if name is None:
        raise Skipped("Kueue is not used")
    paths = (f"/apis/kueue.x-k8s.io/{one}/namespaces/{kube.namespace}/localqueues/{name}" for one in KUEUE_VERSIONS)
    found = next((queue for queue in map(kube.get, paths) if queue is not None), None)
    if found is None:
        raise CheckFailedError(
            f"LocalQueue {name} is missing in {kube.namespace}", "Create it, or correct kueue.queueName."
        )
    active = [one for one in found.get("status", {}).get("conditions", []) if one["type"] == "Active"]
    if active and active[0]["status"] != "True":
        raise CheckFailedError(
            f"LocalQueue {name} is not active: {active[0].get('message', '')}", "Check its ClusterQueue."
        )
    return f"LocalQueue {name}"


def cluster(kube: Kube, instance: str) -> str:
    """The standing RayCluster has a ready head."""
    found = kube.objects(_rayclusters(kube), labelSelector=_release(instance))
    if not found:
        raise Skipped("there is no standing cluster; `deploy rayjob` creates one per job")
    status, name = found[0].get("status", {}), found[0]["metadata"]["name"]
    if problem := pods_refused(name, status):
        raise CheckFailedError(*problem)
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    head = conditions.get("HeadPodReady", {})
    if head.get("status") != "True":
        why = head.get("message") or "the operator has not processed it yet"
        raise CheckFailedError(
            f"{name} has no ready head: {why}", f"See `kubectl -n {kube.namespace} describe raycluster {name}`."
        )
    return f"{name}: the head and {status.get('readyWorkerReplicas', 0)} workers are ready"


def pods(kube: Kube, instance: str) -> str:
    """Every pod of the release could be created, and none is stuck."""
    for deployment in _deployments(kube, instance):
        if problem := pods_refused(deployment["metadata"]["name"], deployment.get("status", {})):
            raise CheckFailedError(*problem)
    found = kube.objects(f"/api/v1/namespaces/{kube.namespace}/pods", labelSelector=_release(instance))
    for pod in found:
        if problem := stuck(pod):
            raise CheckFailedError(*problem)
    return f"{len(found)} pods, none is stuck"
