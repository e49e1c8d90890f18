"""Values that make no sense are refused by helm, with their path and what is missing."""

import copy
from typing import Any

import pytest
from helm_python import HelmError

from tests.support.chart import GOOD, render


def with_value(path: str, value: Any) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(GOOD)
    here = values
    *folders, last = path.split(".")
    for folder in folders:
        here = here.setdefault(folder, {})
    here[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("image.digest", "sha256:123"),
        ("image.pullPolicy", "Sometimes"),
        ("image.rayVersion", "2.40.0"),
        ("site.root", "/a/folder"),
        ("s3.endpoint", "minio:9000"),
        ("groups.fast", {"resources": {"cpu": "2"}}),
        ("head.resources.memory", "lots"),
        ("groups.gpu-sit.max", 0),
        ("groups.gpu-sit.gpus", -1),
        ("groups.gpu-sit.replicas", 3),
        ("groups.GPU", {"resources": {"cpu": "1", "memory": "1Gi"}}),
        ("groups.cpu.terminationGracePeriodSeconds", 3),
        ("stagePools.train", "cpu"),
        ("mlflow.artifactRoot", "/mlflow"),
        ("networkPolicy.s3.cidrs", ["everywhere"]),
        ("networkPolicy.s3.ports", []),
        ("kueue.on", True),
        ("retrain.schedule", "tomorrow"),
        ("retrain.set", ["sit.steps"]),
        ("retrain.attempts", 0),
        ("rayjob.ttlSecondsAfterFinished", -1),
        ("rbac.submitters", [{"kind": "Robot", "name": "ci"}]),
        ("rbac.submitters", ["ci"]),
        ("rbac.submitters", [{"kind": "ServiceAccount", "name": "ci"}]),
        ("site.root", "file:///data"),
        ("fullnameOverride", "1.st"),
        ("groups.cpu.shm", "1.5Gi"),
        ("caBundle", "/etc/ca.pem"),
        ("networkPolicy.apiServerCidrs", []),
        ("networkPolicy.s3.ports", [None]),
        ("image.pullSecrets", [None]),
        ("image.pullSecrets", [""]),
        ("site.extra.cluster", "gpu"),
        ("unknown", 1),
    ],
)
def test_values_out_of_schema_are_refused_with_their_path(path, value):
    with pytest.raises(HelmError) as refusal:
        render(with_value(path, value))
    assert path.split(".")[-1] in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"auth": {"existingSecret": "t"}}, "site.root"),
        ({"site": {"root": "s3://b/p"}}, "auth.existingSecret"),
        (with_value("site.extra.root", "s3://b/other"), "site.extra.root: set site.root"),
        (with_value("site.root", "s3://b/exp#1"), "site.root: s3://b/exp#1 contains # or"),
        (with_value("mlflow.artifactRoot", "s3://b/exp?x"), "mlflow.artifactRoot: .* choose another prefix"),
        (with_value("stagePools.encode", "gpu-none"), "stagePools.encode"),
        (with_value("groups.gpu-sit.enabled", False), "stagePools.train-sit"),
        (with_value("groups.cpu.min", 9), "groups.cpu"),
        (with_value("stagePools.analyze", "cpu"), "stagePools.analyze"),
        (with_value("groups.gpu-batch.gpus", 0), 'stagePools.*: group "gpu-batch" has 0 GPUs per pod.*is cuda'),
        (with_value("site.extra", {"cluster": {"device": "cpu"}}), "stagePools.*is cpu"),
        (with_value("groups.cpu.shm", "64Gi"), "groups.cpu.shm: 64Gi is not less than the memory"),
        (with_value("head.shm", "8Gi"), "head.shm"),
        (with_value("kueue.enabled", True), "kueue.queueName"),
        (with_value("mlflow.basicAuth.enabled", True), "mlflow.basicAuth.existingSecret"),
        (with_value("head.gcsFaultTolerance.enabled", True), "head.gcsFaultTolerance.redisAddress"),
        (with_value("mlflow.database.existingSecret", "db"), "networkPolicy.postgres"),
        (with_value("retrain.enabled", True), "retrain.preset"),
        (with_value("groups.cpu.resources.ephemeral-storage", "1Gi"), "groups.cpu.resources.ephemeral-storage"),
        (with_value("groups.cpu.spot.enabled", True), "groups.cpu.spot"),
        (with_value("mlflow.enabled", False), "mlflow.externalUri"),
        (with_value("networkPolicy.s3.cidrs", ["0.0.0.0/1", "128.0.0.0/1"]), "0.0.0.0/1 is too wide"),
        (with_value("networkPolicy.s3.cidrs", []), "networkPolicy.s3: set its location"),
        (
            {**GOOD, "autoscaler": {"enabled": False}, "retrain": {"enabled": True, "preset": "cifar10"}},
            "no autoscaler",
        ),
        (
            {
                **GOOD,
                "kueue": {"enabled": True, "queueName": "q"},
                "groups": {"head": {"resources": {"cpu": "1", "memory": "4Gi"}}},
            },
            "Kueue takes at most 7",
        ),
    ],
)
def test_what_is_missing_is_named(values, word):
    with pytest.raises(HelmError, match=word):
        render(values)
