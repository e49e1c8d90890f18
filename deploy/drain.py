"""Telling Ray that the node of this pod goes away: the chart's preStop hook.

Ray then gives the node no more work and lets trainers know (`ray.train.get_preemption_info`), which save and are moved.
"""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from deploy.errors import ConnectError, DeniedError
from pipeline.cluster import Head, head_address, is_alive

_POLL_SECONDS = 1.0


def drain(end: float, say: Callable[[str], None]) -> None:
    """Drain this machine's Ray node until `end` (seconds since the epoch); returns when it is idle or gone, or then.

    ConnectError when there is no Ray here, or no head any more.
    """
    head, nodes = _head_here()
    here = _this_node(nodes)
    if here is None:
        say("no Ray node is alive here: nothing to drain")
        return
    seconds = end - time.time()
    accepted, why = head.drain(here, end)
    say(f"{here.node_id.hex()[:12]} drains for {seconds:.0f} s" if accepted else f"the drain was not accepted: {why}")
    _await_idle(head, here, end)


def _head_here() -> tuple[Head, list[Any]]:
    """The head of this machine's Ray, and its nodes."""
    from ray.exceptions import AuthenticationError, RpcError

    try:
        address = head_address()
        _knock(address)
        head = Head(address)
        return head, head.nodes()
    except AuthenticationError as error:
        raise DeniedError("the cluster refused this pod's token", "Does auth.existingSecret hold its token?") from error
    except (OSError, RuntimeError, RpcError) as error:
        raise ConnectError(f"no Ray answers here ({error})", "This is for the pods of a Ray cluster.") from error


def _knock(address: str) -> None:
    """OSError at once where no head listens: Ray's own client would try for longer than a pod has."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()


def _this_node(nodes: list[Any]) -> Any:
    """The living node of this pod, which KubeRay names by RAY_CLOUD_INSTANCE_ID, or of this address; else None."""
    import ray

    pod, own = os.environ.get("RAY_CLOUD_INSTANCE_ID"), ray.util.get_node_ip_address()
    alive = [node for node in nodes if is_alive(node)]
    return next((node for node in alive if (node.instance_id == pod if pod else node.node_ip_address == own)), None)


def _await_idle(head: Head, here: Any, end: float) -> None:
    from ray.exceptions import RpcError

    while time.time() < end:
        try:
            nodes = head.nodes()
        except (ConnectionError, RuntimeError, RpcError) as error:
            raise ConnectError(f"the head has gone meanwhile ({error})", "Nothing is left to wait for.") from error
        if not any(node.node_id == here.node_id and _is_busy(node) for node in nodes):
            return
        time.sleep(_POLL_SECONDS)


def _is_busy(node: Any) -> bool:
    """Is the node alive, and does anything hold a part of it?"""
    free = node.available_resources
    return is_alive(node) and any(free[name] < all_ for name, all_ in node.total_resources.items())
