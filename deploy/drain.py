"""Telling Ray that the node of this pod goes away: the chart's preStop hook.

Ray then gives the node no more work and lets trainers know (`ray.train.get_preemption_info`), which save and are moved.
The head is asked directly, not through a driver of our own: a pod that ends has no time to start one.
"""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from deploy.errors import ConnectError, DeniedError

_POLL_SECONDS = 1.0


def drain(end: float, say: Callable[[str], None]) -> None:
    """Drain this machine's Ray node until `end` (seconds since the epoch); returns when it is idle or gone, or then.

    ConnectError when there is no Ray here, or no head any more.
    """
    import ray
    from ray._private import services
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython, without types
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated import autoscaler_pb2
    from ray.exceptions import AuthenticationError, RpcError

    try:
        address = services.canonicalize_bootstrap_address_or_die(None)
        _knock(address)
        gcs = GcsClient(address=address)
        nodes = get_cluster_resource_state(gcs).node_states
    except AuthenticationError as error:
        raise DeniedError("the cluster refused this pod's token", "Does auth.existingSecret hold its token?") from error
    except (OSError, RuntimeError, RpcError) as error:
        raise ConnectError(f"no Ray answers here ({error})", "This is for the pods of a Ray cluster.") from error
    pod, own = os.environ.get("RAY_CLOUD_INSTANCE_ID"), ray.util.get_node_ip_address()  # KubeRay sets the first
    alive = [node for node in nodes if _is_alive(node)]
    here = next((node for node in alive if (node.instance_id == pod if pod else node.node_ip_address == own)), None)
    if here is None:
        say("no Ray node is alive here: nothing to drain")
        return
    seconds = end - time.time()
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, why = gcs.drain_node(here.node_id.hex(), reason, "the pod ends", int(1000 * end))
    say(f"{here.node_id.hex()[:12]} drains for {seconds:.0f} s" if accepted else f"the drain was not accepted: {why}")
    while time.time() < end:
        try:
            states = get_cluster_resource_state(gcs).node_states
        except (ConnectionError, RuntimeError, RpcError) as error:
            raise ConnectError(f"the head has gone meanwhile ({error})", "Nothing is left to wait for.") from error
        if not any(node.node_id == here.node_id and _is_busy(node) for node in states):
            return
        time.sleep(_POLL_SECONDS)


def _knock(address: str) -> None:
    """OSError at once where no head listens: Ray's own client would try for longer than a pod has."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()


def _is_alive(node: Any) -> bool:
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    return bool(node.status != NodeStatus.DEAD)


def _is_busy(node: Any) -> bool:
    """Is the node alive, and does anything hold a part of it?"""
    free = node.available_resources
    return _is_alive(node) and any(free[name] < all_ for name, all_ in node.total_resources.items())
