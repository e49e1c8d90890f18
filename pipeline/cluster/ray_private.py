"""All uses of Ray's private API: if a newer Ray changes it, only this file has to be adapted.

Callers decide what to do and when.
"""

import os
from typing import Any


def start_coordinator() -> None:
    """On a local Ray, start the actor from which Ray Train and Ray Data request resources.

    They would start it themselves and wait for its imports; started early, it imports during the preceding stages.
    No other thread may be importing Ray's modules.
    """
    if "RAY_ADDRESS" in os.environ:
        return
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def remove_placement_groups() -> None:
    """Release all resources that placement groups of this cluster have reserved."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def is_autoscaled() -> bool:
    """Whether an autoscaler has reported to this cluster."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython, without types
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    return bool(reply.autoscaling_state.autoscaler_state_version > 0)


def torch_trainer(local: bool) -> type[Any]:
    """Ray Train's TorchTrainer with two changes. `local`: for a Ray without a dashboard."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):  # type: ignore[misc]
        """TorchTrainer without its SIGINT handler and, on a local Ray, without its placement group cleaner."""

        def _register_sigint_handler(self, controller: Any) -> None:
            """Do nothing: on Ctrl-C, Ray's handler would end the process with exit code 0."""

        def _create_default_callbacks(self) -> list[Any]:
            """Omit the cleaner, which is useless without a dashboard, and the start of its process."""
            kept: list[Any] = super()._create_default_callbacks()
            return [one for one in kept if not (local and isinstance(one, PlacementGroupCleanerCallback))]

    return Trainer


def head_address() -> str:
    """HOST:PORT of the head of this machine's Ray cluster. RuntimeError or OSError if there is none."""
    from ray._private import services

    return str(services.canonicalize_bootstrap_address_or_die(None))


class Head:
    """A client of a cluster's head that needs no driver: a pod that is being deleted has no time to start one.

    Each call raises the errors of Ray's client: AuthenticationError, RpcError, RuntimeError or OSError.
    """

    def __init__(self, address: str) -> None:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython, without types

        self._client = GcsClient(address=address)

    def nodes(self) -> list[Any]:
        """The state of every node: `node_id`, `node_ip_address`, `instance_id`, resources; see `is_alive`."""
        from ray.autoscaler.v2.sdk import get_cluster_resource_state

        return list(get_cluster_resource_state(self._client).node_states)

    def drain(self, node: Any, end: float) -> tuple[bool, str]:
        """Stop scheduling work on the node, which is deleted at `end` (seconds since the epoch).

        Returns whether the head accepted, and if not, why.
        """
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        accepted, why = self._client.drain_node(node.node_id.hex(), reason, "the pod is being deleted", int(1000 * end))
        return bool(accepted), str(why)


def is_alive(node: Any) -> bool:
    """Whether a node of `Head.nodes` is alive."""
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    return bool(node.status != NodeStatus.DEAD)
