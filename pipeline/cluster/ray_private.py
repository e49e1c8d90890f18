"""Ray's private names, all in this file: what a newer Ray renames is changed here and nowhere else.

Whether something is to be done, and when, is decided by the callers.
"""

from typing import Any


def start_coordinator() -> None:
    """Start the actor that Ray Train and Ray Data ask for resources.

    They would start it themselves and wait for its imports; so these pass beside the stages before.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def remove_placement_groups() -> None:
    """Give back everything that placement groups of this cluster have reserved."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def is_autoscaled() -> bool:
    """Has an autoscaler reported to this cluster?"""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython, without types
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    return bool(reply.autoscaling_state.autoscaler_state_version > 0)


def torch_trainer(local: bool) -> type[Any]:
    """Ray Train's TorchTrainer without what does harm here; `local`: for a Ray without a dashboard."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):  # type: ignore[misc]
        """Ray's, but for two things."""

        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's own handler would end the run on Ctrl-C as if nothing had happened, with exit code 0."""

        def _create_default_callbacks(self) -> list[Any]:
            """Without a dashboard the cleaner can do nothing: one process less to start."""
            kept: list[Any] = super()._create_default_callbacks()
            return [one for one in kept if not (local and isinstance(one, PlacementGroupCleanerCallback))]

    return Trainer


def head_address() -> str:
    """HOST:PORT of the head that this machine's Ray belongs to. RuntimeError or OSError where there is none."""
    from ray._private import services

    return str(services.canonicalize_bootstrap_address_or_die(None))


class Head:
    """A cluster's head, asked directly: a pod that ends has no time to start a driver.

    Each call raises what Ray's client does: AuthenticationError, RpcError, RuntimeError or OSError.
    """

    def __init__(self, address: str) -> None:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython, without types

        self._client = GcsClient(address=address)

    def nodes(self) -> list[Any]:
        """Ray's state of every node: `node_id`, `node_ip_address`, `instance_id`, resources; see `is_alive`."""
        from ray.autoscaler.v2.sdk import get_cluster_resource_state

        return list(get_cluster_resource_state(self._client).node_states)

    def drain(self, node: Any, end: float) -> tuple[bool, str]:
        """Have no more work given to the node, which goes away at `end` (seconds since the epoch).

        Whether the head has accepted that, and why not.
        """
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        accepted, why = self._client.drain_node(node.node_id.hex(), reason, "the pod ends", int(1000 * end))
        return bool(accepted), str(why)


def is_alive(node: Any) -> bool:
    """Is a node of `Head.nodes` alive?"""
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    return bool(node.status != NodeStatus.DEAD)
