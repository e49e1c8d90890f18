"""What a stage's work asks of a node: its pool, its device, its share of the CPUs."""

import time
from collections.abc import Callable

from pipeline.cluster.joining import is_local
from pipeline.cluster.ray_private import is_autoscaled, remove_placement_groups
from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError

_NODE_SECONDS = 600.0  # for a node that has been lost or is about to join
_WITHOUT_DEVICE = ("prepare", "register")


def device_of(config: ClusterConfig) -> str:
    """cpu or cuda, as set or as the cluster has it."""
    if config.device != "auto":
        return config.device
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"


def threads_per_worker(config: ClusterConfig) -> int:
    """CPUs, and torch threads, of one training worker: as set, or its fair share of the CPUs."""
    if config.cpus_per_worker is not None:
        return config.cpus_per_worker
    import ray

    return max(1, min(8, int(ray.cluster_resources().get("CPU", 1)) // config.workers))


def pool_resources(config: ClusterConfig, stage: str) -> dict[str, float]:
    """The Ray resources that mark the pool of a stage; empty where any node will do."""
    return dict(config.pools.get(stage, {}))


def free_placement_groups() -> None:
    """Give back what a dead train controller had reserved on a local Ray.

    Ray leaves that to an actor which asks the dashboard whether the controller lives; a local Ray has none.
    """
    if is_local():
        remove_placement_groups()


def await_pool(config: ClusterConfig, stage: str, say: Callable[[str], None]) -> None:
    """Return when a node could take the stage's work, or an autoscaler is there to add one.

    Ray would wait for ever, and say nothing here. PipelineError where no node comes.
    """
    wanted = {"CPU": 1.0, **pool_resources(config, stage)}
    if stage not in _WITHOUT_DEVICE and device_of(config) == "cuda":
        wanted["GPU"] = 1.0
    begin, told = time.monotonic(), False
    while not _has_node(wanted):
        words = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
        if is_autoscaled():
            say(
                f"{stage}: no node of its pool yet ({words}): the autoscaler is asked for one; where none comes, "
                "`python -m deploy doctor` says why"
            )
            return
        if is_local() or time.monotonic() - begin > _NODE_SECONDS:
            raise PipelineError(
                f"{stage} wants a node with {words}, and there is none, nor an autoscaler that would add one",
                "Start such a node, or correct cluster.device and cluster.pools.",
            )
        if not told:
            say(f"{stage}: no node of its pool yet ({words}): waiting up to {_NODE_SECONDS:.0f} s for one")
            told = True
        time.sleep(2.0)


def _has_node(wanted: dict[str, float]) -> bool:
    import ray

    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(one.get(name, 0.0) >= amount for name, amount in wanted.items()) for one in has)
