"""Groups with GPUs go where nodes have them. The node has none: it says that it has, and the pods compute on CPU."""

import json
from collections.abc import Iterator

import pytest

from pipeline.workflow.graph import NAMES
from tests.cluster.installation import ROOT, Installation
from tests.cluster.work import TRAINING, done, ended, start, submission

pytestmark = pytest.mark.slow
GPU_WORKERS = "ray.io/group=gpu-tokenizer"


def advertise_gpus(place: Installation, count: int) -> None:
    patch = json.dumps([{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(count)}])
    name = place.cluster.kubectl("get", "nodes", "--output=jsonpath={.items[0].metadata.name}")
    place.cluster.kubectl("patch", "node", name, "--subresource=status", "--type=json", "--patch", patch)


@pytest.fixture(scope="module")
def with_a_pool(place: Installation) -> Iterator[Installation]:
    """A release whose tokenizers are trained on a pool with a GPU a pod."""
    group = {"enabled": True, "max": 1, "resources": {"cpu": "300m", "memory": "4Gi"}, "shm": "1Gi"}
    place.write_values(
        groups={"gpu-tokenizer": {**group, "gpus": 1, "mirror": {"size": "1Gi"}}},
        stagePools={stage: "gpu-tokenizer" for stage in NAMES if stage not in ("prepare", "classifier", "register")},
    )
    try:
        place.upgrade()
        yield place
    finally:
        advertise_gpus(place, 0)
        place.write_values()
        place.upgrade()


def test_it_waits_for_a_node_with_a_gpu_and_runs_there(with_a_pool: Installation):
    place, root = with_a_pool, f"{ROOT}-gpus"
    told = place.doctor()
    assert told.returncode == 1
    assert "none of the 1 nodes has" in told.stdout
    done(place, submission(root, "stage", "prepare", "quickstart", sets=TRAINING))
    sets = (*TRAINING, "cluster.device=cpu")  # the chart says cuda
    training = start(place, submission(root, "stage", "train-tokenizer", "quickstart", sets=sets))
    place.wait(lambda: bool(place.pods(GPU_WORKERS)), "the autoscaler asks for no pod of the group")
    (pod,) = place.pods(GPU_WORKERS)
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    place.wait(lambda: "Insufficient nvidia.com/gpu" in place.kubectl("get", "events"), "nobody misses a GPU", 60)
    advertise_gpus(place, 2)
    code, out, error = ended(training)
    assert code == 0, f"{out}\n{error}\n{place.state()}"
    assert "no node of its pool is available" in out, "who waits is told what for"
    assert "if none is added, run `python -m deploy doctor`" in out
    told = place.doctor()
    assert told.returncode == 0, told.stdout
