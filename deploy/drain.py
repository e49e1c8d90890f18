"""Drains the Ray node of this pod before the pod is deleted: the chart's preStop hook.

Ray then schedules no more work on the node and notifies trainers (`ray.train.get_preemption_info`), which save a
checkpoint and are restarted elsewhere.
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
    """Drain this machine's Ray node; returns when it is idle or gone, or at `end` (seconds since the epoch).

    ConnectError if Ray does not run here or its head is gone.
    """
    head, nodes = _connect()
    here = _this_node(nodes)
    if here is None:
        say("no Ray node is alive on this machine: nothing to drain")
        return
    seconds = end - time.time()
    accepted, why = head.drain(here, end)
    say(
        f"draining node {here.node_id.hex()[:12]} for {seconds:.0f} s" if accepted else f"Ray rejected the drain: {why}"
    )
    _await_idle(head, here, end)


def _connect() -> tuple[Head, list[Any]]:
    """The head of this machine's Ray cluster, and the cluster's nodes."""
    from ray.exceptions import AuthenticationError, RpcError

    try:
        address = head_address()
        _check_listening(address)
        head = Head(address)
        return head, head.nodes()
    except AuthenticationError as error:
        raise DeniedError(
            "the cluster refused this pod's token",
            "Put the cluster's token into the Secret named by auth.existingSecret.",
        ) from error
    except (OSError, RuntimeError, RpcError) as error:
        raise ConnectError(
            f"Ray does not answer on this machine ({error})", "Run this in a pod of a Ray cluster."
        ) from error


def _check_listening(address: str) -> None:
    """OSError at once if no head listens: Ray's client would retry for longer than the pod's grace period."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()


def _this_node(nodes: list[Any]) -> Any:
    """The alive node of this pod (by RAY_CLOUD_INSTANCE_ID, set by KubeRay) or, without it, of this IP address."""
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
            raise ConnectError(
                f"the head went away during the drain ({error})", "Ignore this if the whole cluster is being deleted."
            ) from error
        if not any(node.node_id == here.node_id and _is_busy(node) for node in nodes):
            return
        time.sleep(_POLL_SECONDS)


def _is_busy(node: Any) -> bool:
    """Whether the node is alive and any of its resources is in use."""
    free = node.available_resources
    return is_alive(node) and any(free[name] < all_ for name, all_ in node.total_resources.items())
