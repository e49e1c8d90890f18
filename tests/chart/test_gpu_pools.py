"""Pools of GPUs by any name of their resource: Ray's autoscaler knows what a pod brings before there is one."""

import copy
from typing import Any

import pytest
import yaml
from helm_python import HelmError

from pipeline.workflow.graph import NAMES
from tests.support.chart import GOOD, kinds, named, rayjob_in, render

RESOURCES = (
    "nvidia.com/gpu",
    "nvidia.com/mig-3g.20gb",
    "nvidia.com/mig-1g.5gb.me",
    "nvidia.com/gpu.shared",
    "amd.com/gpu",
    "gpu.intel.com/i915",
)


def with_gpus(resource: str, gpus: int = 1) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), "groupDefaults": {"gpuResource": resource}, "groups": {"gpu-batch": {"gpus": gpus}}}


def node_types(spec: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The resources that a pod of each group brings, as Ray's own autoscaler reads them from the cluster's object."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "r", "namespace": "n"}, "spec": spec})
    return {name: one["resources"] for name, one in config["available_node_types"].items()}


@pytest.mark.parametrize("resource", RESOURCES)
def test_ray_counts_them_whatever_their_resource_is_called(resource):
    objects = render(with_gpus(resource, gpus=1))
    (cluster,) = kinds(objects, "RayCluster")
    job = rayjob_in(named(objects, "ConfigMap", "-rayjob"))
    for spec in (cluster["spec"], job["spec"]["rayClusterSpec"]):
        types = node_types(spec)
        for pool in ("gpu-tokenizer", "gpu-sit", "gpu-batch"):
            assert types[pool]["GPU"] == 1, pool
            assert types[pool][f"pool-{pool}"] == 1
        assert not types["cpu"].get("GPU")
        assert not types["headgroup"].get("GPU")
        (group,) = [one for one in spec["workerGroupSpecs"] if one["groupName"] == "gpu-batch"]
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"][resource] == 1


def test_and_as_many_as_a_pod_has():
    (cluster,) = kinds(render(with_gpus("example.com/accelerator", gpus=4)), "RayCluster")
    assert node_types(cluster["spec"])["gpu-batch"]["GPU"] == 4


@pytest.mark.parametrize("resource", RESOURCES)
def test_every_stage_finds_what_it_asks_for(resource):
    """So its pool starts from none: CPU, its pool, and a GPU where the site's device is one."""
    objects = render(with_gpus(resource))
    cluster = yaml.safe_load(named(objects, "ConfigMap", "-site")["data"]["site.yaml"])["cluster"]
    assert cluster["device"] == "cuda"
    types = node_types(kinds(objects, "RayCluster")[0]["spec"]).values()
    for stage in NAMES:
        asked = {
            "CPU": 1,
            **cluster["pools"][stage],
            **({} if stage in ("prepare", "classifier", "register") else {"GPU": 1}),
        }
        assert any(all(have.get(name, 0) >= count for name, count in asked.items()) for have in types), stage


@pytest.mark.parametrize("resource", ["nvidia.com/mig-3g.20gb", "nvidia.com/gpu.shared"])
def test_more_slices_or_shares_than_a_process_sees_are_refused(resource):
    with pytest.raises(HelmError, match=r"groups.gpu-batch.gpus: 2 of .*Set gpus to 1 and raise groups.gpu-batch.max"):
        render(with_gpus(resource, gpus=2))


@pytest.mark.parametrize("resource", RESOURCES)
def test_gpus_among_the_resources_are_refused(resource):
    """Ray would not be told of them, nor the site's device follow them."""
    resources = {"cpu": "4", "memory": "32Gi", resource: "1"}
    with pytest.raises(HelmError, match=rf"groups.cpu.resources.{resource}: .* by groups.cpu.gpus, .*cpu.gpuResource"):
        render({**GOOD, "groups": {"cpu": {"resources": resources}}})


def test_but_not_what_a_pod_has_beside_them():
    beside = {"rdma/ib": "1", "hugepages-2Mi": "1Gi", "nvidia.com/gpumem": "4000", "gpu.intel.com/i915_monitoring": "1"}
    (cluster,) = kinds(render({**GOOD, "groups": {"gpu-sit": {"resources": beside}}}), "RayCluster")
    (group,) = [one for one in cluster["spec"]["workerGroupSpecs"] if one["groupName"] == "gpu-sit"]
    assert beside.items() <= group["template"]["spec"]["containers"][0]["resources"]["limits"].items()
