"""The resources that a stage's work requires of a node: pool, device, CPUs."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from pipeline.cluster.joining import is_local
from pipeline.cluster.ray_private import is_autoscaled, remove_placement_groups
from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError

_NODE_SECONDS = 600.0  # wait for a node that was lost or is about to join
_WITHOUT_DEVICE = ("prepare", "classifier", "register")


def device_of(config: ClusterConfig) -> str:
    """cpu or cuda: as configured, else cuda if the cluster has a GPU."""
    if config.device != "auto":
        return config.device
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"


def threads_per_worker(config: ClusterConfig) -> int:
    """CPUs and torch threads of one training worker: as configured, else an equal share of the CPUs, from 1 to 8."""
    if config.cpus_per_worker is not None:
        return config.cpus_per_worker
    import ray

    return max(1, min(8, int(ray.cluster_resources().get("CPU", 1)) // config.workers))


# A stage that has no pool, and no share of a GPU, of its own takes that of another.
_SAME_WORK = {"convergence": "sample"}


def gpu_share(config: ClusterConfig, stage: str) -> float:
    """The share of a GPU that each task of the stage takes."""
    return config.gpu_shares.get(stage, config.gpu_shares.get(_SAME_WORK.get(stage, stage), 1.0))


def tasks_per_gpu(config: ClusterConfig, stage: str) -> int:
    """How many tasks of the stage run on one GPU at a time."""
    return math.floor(1.0 / gpu_share(config, stage) + 1e-6)  # three thirds, of which each is a little less, are one


def pool_resources(config: ClusterConfig, stage: str) -> dict[str, float]:
    """The custom Ray resources of a stage's pool; empty if any node will do."""
    return dict(config.pools.get(stage, config.pools.get(_SAME_WORK.get(stage, stage), {})))


class EncoderPool(NamedTuple):
    """Actors that encode, a device or a share of one each, and the processes that decode for each on its node."""

    encoders: int
    decoders: int  # of each encoder


def encoder_pool(config: ClusterConfig, stage: str) -> EncoderPool:
    """An encoder for every GPU or share of one (every CPU, if the cluster has no GPU) of the nodes that the stage may
    use, unless configured; and a decoder for every CPU of these nodes.
    """
    import ray

    required = pool_resources(config, stage)
    on_gpus = device_of(config) == "cuda"
    if on_gpus:
        required["GPU"] = gpu_share(config, stage)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and _offers(node["Resources"], required)]
    cpus, gpus = (int(sum(node.get(name, 0.0) for node in nodes)) for name in ("CPU", "GPU"))
    encoders = config.encode_actors or max(1, gpus * tasks_per_gpu(config, stage) if on_gpus else cpus)
    return EncoderPool(encoders, max(1, cpus // encoders))


def free_placement_groups() -> None:
    """On a local Ray, release the resources that a dead train controller had reserved.

    Ray leaves that to an actor that queries the dashboard, which a local Ray does not have.
    """
    if is_local():
        remove_placement_groups()


def await_pool(config: ClusterConfig, stage: str, say: Callable[[str], None]) -> None:
    """Return when a node can run the stage's work, or an autoscaler can add one.

    Ray itself would wait forever without a message. PipelineError if there is no node after ten minutes.
    """
    required = {"CPU": 1.0, **pool_resources(config, stage)}
    if stage not in _WITHOUT_DEVICE and device_of(config) == "cuda":
        required["GPU"] = gpu_share(config, stage)
    begin, reported = time.monotonic(), False
    while not _has_node(required):
        text = ", ".join(f"{name} {amount:g}" for name, amount in required.items())
        if is_autoscaled():
            say(
                f"{stage}: no node of its pool is available ({text}): requested one from the autoscaler; "
                "if none is added, run `python -m deploy doctor`"
            )
            return
        if is_local() or time.monotonic() - begin > _NODE_SECONDS:
            raise PipelineError(
                f"{stage} requires a node with {text}; the cluster has none, and no autoscaler to add one",
                "Add such a node, or correct cluster.device and cluster.pools.",
            )
        if not reported:
            say(f"{stage}: no node of its pool is available ({text}): waiting up to {_NODE_SECONDS:.0f} s for one")
            reported = True
        time.sleep(2.0)


def _has_node(required: dict[str, float]) -> bool:
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(_offers(one, required) for one in resources)


def _offers(resources: dict[str, float], required: dict[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in required.items())
