"""Network policies of every case, evaluated as Kubernetes would: a connection needs both ends to allow it."""

import json
from typing import Any

from tests.support.chart import GOOD, Object, kinds, pod_specs, render, rendered

METADATA = "169.254.169.254"


def matches(labels: dict[str, str], selector: dict[str, Any]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def allowed(objects: list[Object], labels: dict[str, str], direction: str, peer: dict[str, Any], port: int) -> bool:
    """Do the policies let a pod with these labels (Ingress) be reached by, or (Egress) reach, the peer?"""
    policies = [
        made["spec"]
        for made in kinds(objects, "NetworkPolicy")
        if direction in made["spec"]["policyTypes"] and matches(labels, made["spec"]["podSelector"])
    ]
    if not policies:
        return True
    rules = [rule for spec in policies for rule in spec.get(direction.lower(), [])]
    return any(
        any(is_peer(one, peer) for one in rule.get("from" if direction == "Ingress" else "to", []))
        and ("ports" not in rule or any(one["port"] == port for one in rule["ports"]))
        for rule in rules
    )


def is_peer(rule: dict[str, Any], peer: dict[str, Any]) -> bool:
    """`peer`: {labels, namespace} of a pod (namespace None: the release's), or {address}."""
    import ipaddress

    if "ipBlock" in rule:
        if "address" not in peer:
            return False
        address = ipaddress.ip_address(peer["address"])
        excepted = [ipaddress.ip_network(one) for one in rule["ipBlock"].get("except", [])]
        return address in ipaddress.ip_network(rule["ipBlock"]["cidr"]) and not any(address in one for one in excepted)
    if "address" in peer:
        return False
    if "namespaceSelector" in rule:
        if not matches(peer["namespace"] or {}, rule["namespaceSelector"]):
            return False
    elif peer["namespace"] is not None:
        return False
    return matches(peer["labels"], rule.get("podSelector", {}))


def ray_pods(objects: list[Object]) -> dict[str, dict[str, str]]:
    return {where: labels for where, (labels, _) in pod_specs(objects).items() if where.startswith("RayCluster")}


def pod(labels: dict[str, str], namespace: dict[str, str] | None = None) -> dict[str, Any]:
    return {"labels": labels, "namespace": namespace}


def mlflow_labels(objects: list[Object]) -> dict[str, str]:
    (labels,) = [labels for where, (labels, _) in pod_specs(objects).items() if where.startswith("Deployment")]
    return labels


def s3_of(objects: list[Object]) -> tuple[dict[str, Any], int]:
    """Where this case has its S3: a pod of another namespace, or AWS's."""
    if "http://minio.storage:9000" in json.dumps(objects):
        return pod({"app": "minio"}, {"kubernetes.io/metadata.name": "storage"}), 9000
    return {"address": "52.3.4.5"}, 443


def test_every_ray_pod_reaches_what_it_needs(objects):
    mlflow, pods = mlflow_labels(objects), ray_pods(objects)
    s3 = s3_of(objects)
    dns = pod({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"})
    for where, labels in pods.items():
        assert allowed(objects, labels, "Egress", pod(mlflow), 5000), where
        assert allowed(objects, mlflow, "Ingress", pod(labels), 5000), where
        assert allowed(objects, labels, "Egress", *s3), where
        assert allowed(objects, labels, "Egress", dns, 53)
        for other in pods.values():
            for port in (6379, 8265, 12345, 61000):
                assert allowed(objects, labels, "Egress", pod(other), port), where
                assert allowed(objects, other, "Ingress", pod(labels), port), where


def test_retrain_reaches_what_it_needs_and_nothing_else():
    """The dashboard, MLflow and S3; it asks nothing of Kubernetes."""
    for case in ("trial", "everything"):
        objects = rendered(case)
        (where,) = [where for where in pod_specs(objects) if where.startswith("CronJob")]
        labels, spec = pod_specs(objects)[where]
        head = next(labels for where, labels in ray_pods(objects).items() if where.endswith(" head"))
        mlflow = mlflow_labels(objects)
        for peer, port in ((pod(head), 8265), (pod(mlflow), 5000), s3_of(objects)):
            assert allowed(objects, labels, "Egress", peer, port)
        for target in (head, mlflow):
            assert allowed(objects, target, "Ingress", pod(labels), 8265 if target is head else 5000)
        assert not allowed(objects, labels, "Egress", pod(head), 6379)
        assert not allowed(objects, labels, "Egress", {"address": "10.96.0.1"}, 6443)
        assert spec["automountServiceAccountToken"] is False
        command = spec["containers"][0]["command"]
        assert command[:4] == ["python", "-m", "deploy", "retrain"]


def test_metadata_is_left_out_of_both_families():
    objects = render({**GOOD, "networkPolicy": {"s3": {"cidrs": ["0.0.0.0/0", "::/0"]}}})
    for labels in ray_pods(objects).values():
        for address in (METADATA, "fd00:ec2::254"):
            assert not allowed(objects, labels, "Egress", {"address": address}, 443)
        assert allowed(objects, labels, "Egress", {"address": "2600:9000::1"}, 443)


def test_s3_inside_of_the_cluster_is_named_by_its_labels():
    """Some networks take no address for a pod's."""
    there = {"kubernetes.io/metadata.name": "storage"}
    s3 = {"cidrs": [], "namespaceSelector": there, "podSelector": {"app": "rgw"}, "ports": [8000]}
    objects = render({**GOOD, "networkPolicy": {"s3": s3}})
    for labels in ray_pods(objects).values():
        assert allowed(objects, labels, "Egress", {"labels": {"app": "rgw"}, "namespace": there}, 8000)
        assert not allowed(objects, labels, "Egress", {"labels": {"app": "other"}, "namespace": there}, 8000)
        assert not allowed(objects, labels, "Egress", {"address": "52.0.0.1"}, 8000)


def test_dns_of_a_nodes_cache_and_of_other_ports():
    objects = render({**GOOD, "networkPolicy": {"dns": {"cidrs": ["169.254.20.10/32"], "ports": [53, 5353]}}})
    for labels in ray_pods(objects).values():
        assert allowed(objects, labels, "Egress", {"address": "169.254.20.10"}, 53)
        assert allowed(objects, labels, "Egress", {"address": "169.254.20.10"}, 5353)


def test_nobody_reaches_the_metadata_address(objects):
    for where, (labels, _) in pod_specs(objects).items():
        for port in (80, 443, 9000):
            assert not allowed(objects, labels, "Egress", {"address": METADATA}, port), where


def test_strangers_stay_outside(objects):
    """A pod of the same namespace without our labels, and one of another namespace that has them."""
    everybody = {where: labels for where, (labels, _) in pod_specs(objects).items()}
    ours = next(iter(ray_pods(objects).values()))
    for labels in everybody.values():
        for stranger in (pod({"app": "stranger"}), pod(ours, {"kubernetes.io/metadata.name": "elsewhere"})):
            for port in (5000, 6379, 8080, 8265, 10001):
                assert not allowed(objects, labels, "Ingress", stranger, port)


def test_every_port_has_its_door(objects):
    """Each port that a container opens is reached by somebody who should, through a policy."""
    operator = pod({}, {"kubernetes.io/metadata.name": "kuberay-system"})
    ray = pod(next(iter(ray_pods(objects).values())))
    for where, (labels, spec) in pod_specs(objects).items():
        for container in spec["containers"]:
            for port in container.get("ports", []):
                number = port["containerPort"]
                assert allowed(objects, labels, "Ingress", ray, number), (where, number)
    head = next(labels for where, labels in ray_pods(objects).items() if where.endswith(" head"))
    assert allowed(objects, head, "Ingress", operator, 8265)


def test_only_the_head_reaches_the_api_and_redis():
    objects = rendered("everything")
    for where, labels in ray_pods(objects).items():
        head = where.endswith(" head")
        assert allowed(objects, labels, "Egress", {"address": "10.96.0.1"}, 6443) is head, where
        assert allowed(objects, labels, "Egress", {"address": "10.1.2.3"}, 6379) is head, where
