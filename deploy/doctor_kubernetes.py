"""Doctor's checks of a Kubernetes: what the chart needs there, and what has become of a release.

Each returns what it has seen, or raises UnfitError with the hint, or Skipped where it has nothing to look at.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from deploy.findings import Skipped, UnfitError
from deploy.kube import KUEUE_VERSIONS, Kube, Object, not_made, stuck
from deploy.rayjob import QUEUE

_KUBERAY = (1, 6)  # brings authOptions.secretName
_OPERATORS = "app.kubernetes.io/name in (kuberay-operator, kuberay)"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def crds(kube: Kube) -> str:
    """KubeRay's CRDs are there, of a version that has what the chart's objects say."""
    for plural in ("rayclusters", "rayjobs"):
        found = kube.get(f"{_CRDS}/{plural}.ray.io")
        if found is None:
            raise UnfitError(f"{plural}.ray.io is not there", "Install KubeRay's operator of version 1.6 or newer.")
        if "secretName" not in _auth_options(found):
            raise UnfitError(
                f"{plural}.ray.io has no authOptions.secretName: it is older than KubeRay 1.6",
                "Apply the CRDs of the operator's version; `helm upgrade` does not.",
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
    """KubeRay's operator runs, is of such a version too, and watches this namespace."""
    found = kube.objects("/apis/apps/v1/deployments", labelSelector=_OPERATORS)
    if not found:
        raise UnfitError("no operator runs in this cluster", "Install KubeRay's operator of version 1.6 or newer.")
    deployment = found[0]
    where = f"{deployment['metadata']['namespace']}/{deployment['metadata']['name']}"
    told = _operator_version(deployment)
    known = tuple(int(part) for part in told.removeprefix("v").split(".")[:2] if part.isdigit())
    if known and known < _KUBERAY:
        raise UnfitError(f"{where} is {told}, which is too old", "Update KubeRay to 1.6 or newer, its CRDs first.")
    if not deployment.get("status", {}).get("availableReplicas"):
        raise UnfitError(
            f"{where} has no pod that is ready", f"kubectl -n {deployment['metadata']['namespace']} get pods"
        )
    watched = _watched(deployment)
    if watched and kube.namespace not in watched:
        raise UnfitError(f"{where} does not watch the namespace {kube.namespace}", "Add it to its --watch-namespace.")
    unsaid = "" if watched is not None else "; its --config says which namespaces it watches"
    return f"{told or 'of unknown version'}, {where}{unsaid}"


def _operator_version(deployment: Object) -> str:
    image = str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    name, _, tag = image.partition("@")[0].rpartition(":")
    if name and "/" not in tag:
        return tag
    chart = str(deployment["metadata"].get("labels", {}).get("helm.sh/chart", ""))
    return chart.removeprefix("kuberay-operator-")


def _watched(deployment: Object) -> list[str] | None:
    """The namespaces that it watches, none for all; None where a file of its own says so."""
    words = [str(word) for word in deployment["spec"]["template"]["spec"]["containers"][0].get("args", [])]
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if name == "config":
            return None
        if name == "watch-namespace":
            return [one for one in (value if equals else following).split(",") if one]
    return []


def secrets(kube: Kube, instance: str, spec: Object) -> str:
    """Every Secret that a pod of the release refers to, with the key that it takes from it."""
    deployments = _deployments(kube, instance)
    standing = kube.objects(_rayclusters(kube), labelSelector=_release(instance))
    needed = {(spec["authOptions"]["secretName"], "auth_token")}
    for part in (spec, [one["spec"] for one in (*deployments, *standing)]):
        needed |= {(one["name"], one["key"]) for one in _references(part, "secretKeyRef")}
    for name, key in sorted(needed):
        found = kube.get(f"/api/v1/namespaces/{kube.namespace}/secrets/{name}")
        if found is None:
            raise UnfitError(
                f"Secret {name} is not there", f"kubectl -n {kube.namespace} create secret generic {name} ..."
            )
        if key not in found.get("data", {}):
            raise UnfitError(f"Secret {name} has no key {key}", "docs/operations.md says what each Secret holds.")
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
    """Every claim has its volume, and there is a storage class for those to come."""
    claims = kube.objects(
        f"/api/v1/namespaces/{kube.namespace}/persistentvolumeclaims", labelSelector=_release(instance)
    )
    unbound = [one for one in claims if one.get("status", {}).get("phase") != "Bound"]
    wanted = {one["spec"].get("storageClassName") for one in unbound}  # a bound one has its volume, class or not
    wanted |= {one["spec"].get("storageClassName") for one in _references(spec, "volumeClaimTemplate")}
    there = {one["metadata"]["name"] for one in kube.objects("/apis/storage.k8s.io/v1/storageclasses")}
    for name in sorted(one for one in wanted if one):
        if name not in there:
            others = f"Use one of {', '.join(sorted(there))}." if there else "Make one: there is none at all."
            raise UnfitError(f"there is no storage class {name}", others)
    waiting = [one["metadata"]["name"] for one in unbound]
    if waiting:
        raise UnfitError(
            f"no volume yet for {', '.join(waiting)}", f"kubectl -n {kube.namespace} describe pvc {waiting[0]}"
        )
    if not (claims or wanted):
        raise Skipped("none is used")
    classes = ", ".join(sorted(one for one in wanted if one))
    return f"{len(claims)} bound" + (f"; class {classes} for more" if classes else "")


def nodes(kube: Kube, group: Object, on_demand: bool) -> str:
    """Is there a node that could hold a pod of this group, by its labels, taints and sizes of GPU?"""
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    gpus = {name: int(count) for name, count in limits.items() if "gpu" in name}
    nodes = [node for node in kube.objects("/api/v1/nodes") if _is_ready(node)]
    fitting = [node for node in nodes if _bears(node, pod)]
    holding = [node for node in fitting if all(_has(node, name) >= count for name, count in gpus.items())]
    what = " and ".join(f"{count} {name}" for name, count in gpus.items())
    if holding:
        return f"{len(holding)} of {len(nodes)} nodes" + (f", with {what} or more" if gpus else "")
    if on_demand:
        raise Skipped("none now; nodes are added on demand")
    why = f"none of the {len(nodes)} nodes has {what}" if fitting else f"none of the {len(nodes)} nodes bears its pods"
    raise UnfitError(
        why + (f" (selector {pod['nodeSelector']})" if pod.get("nodeSelector") and not fitting else ""),
        f"Add such nodes{' and their device plugin' if gpus else ''}, turn groups.{group['groupName']}.enabled off, "
        "or say --nodes-on-demand if they are added as they are asked for.",
    )


def _is_ready(node: Object) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and not node.get("spec", {}).get("unschedulable")


def _bears(node: Object, pod: Object) -> bool:
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
    """The LocalQueue is there and active."""
    name = template["metadata"]["labels"].get(QUEUE)
    if name is None:
        raise Skipped("Kueue is not used")
    paths = (f"/apis/kueue.x-k8s.io/{one}/namespaces/{kube.namespace}/localqueues/{name}" for one in KUEUE_VERSIONS)
    found = next((queue for queue in map(kube.get, paths) if queue is not None), None)
    if found is None:
        raise UnfitError(f"there is no LocalQueue {name} in {kube.namespace}", "Make one, or set kueue.queueName.")
    active = [one for one in found.get("status", {}).get("conditions", []) if one["type"] == "Active"]
    if active and active[0]["status"] != "True":
        raise UnfitError(f"LocalQueue {name} is not active: {active[0].get('message', '')}", "See its ClusterQueue.")
    return f"LocalQueue {name}"


def cluster(kube: Kube, instance: str) -> str:
    """The standing RayCluster has a head that is ready."""
    found = kube.objects(_rayclusters(kube), labelSelector=_release(instance))
    if not found:
        raise Skipped("none stands; `deploy rayjob` makes one a job")
    status, name = found[0].get("status", {}), found[0]["metadata"]["name"]
    if told := not_made(name, status):
        raise UnfitError(*told)
    conditions = {one["type"]: one for one in status.get("conditions", [])}
    head = conditions.get("HeadPodReady", {})
    if head.get("status") != "True":
        why = head.get("message") or "the operator has not looked at it yet"
        raise UnfitError(
            f"{name} has no head that is ready: {why}", f"kubectl -n {kube.namespace} describe raycluster {name}"
        )
    return f"{name}: {status.get('readyWorkerReplicas', 0)} workers beside the head"


def pods(kube: Kube, instance: str) -> str:
    """Every pod of the release could be made, and none is stuck."""
    for made in _deployments(kube, instance):
        if told := not_made(made["metadata"]["name"], made.get("status", {})):
            raise UnfitError(*told)
    found = kube.objects(f"/api/v1/namespaces/{kube.namespace}/pods", labelSelector=_release(instance))
    for pod in found:
        if told := stuck(pod):
            raise UnfitError(*told)
    return f"{len(found)}, none of them stuck"
