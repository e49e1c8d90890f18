"""A Ray cluster of one node with token authentication, as its own process group, for tests of what submits to it."""

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.support.groups import Group, free_port, running

_UP_SECONDS = 90.0
_STARTS = 3  # Ray gives a node 30 s, whatever the machine is busy with, and no setting changes that
_GAVE_UP = "The current node timed out during startup"
_END = signal.SIGKILL  # of a node that is tested no more. To SIGTERM, `ray start --block` needs more than 20 s


@dataclass(frozen=True)
class Head:
    address: str  # of the dashboard
    token: str
    environment: dict[str, str]  # what a client needs to reach it
    scratch: str  # as RAY_TMPDIR, where Ray notes that this head is on this machine
    gcs: str  # where workers find it
    metrics: str  # what Prometheus would ask


@contextmanager
def running_head(folder: Path, environment: Mapping[str, str], cpus: int = 2) -> Iterator[Head]:
    """`environment` is that of the pods: what jobs see."""
    for left in reversed(range(_STARTS)):
        with ExitStack() as stack:
            head, group = stack.enter_context(_started_head(folder, environment, cpus))
            try:
                _wait(head, group)
            except AssertionError:
                if not left or _GAVE_UP not in group.log.read_text(errors="replace"):
                    raise
                continue
            yield head
            return


@contextmanager
def _started_head(folder: Path, environment: Mapping[str, str], cpus: int) -> Iterator[tuple[Head, Group]]:
    token, dashboard, port = secrets.token_hex(32), free_port(), free_port()
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    metrics = free_port()
    scratch = tempfile.mkdtemp(prefix="dvae-")  # short: Ray's sockets lie below it
    pods = {**os.environ, **settings, **environment, "PATH": path, "RAY_TMPDIR": scratch}
    pods.pop("RAY_ADDRESS", None)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", str(port),
        "--ray-client-server-port", str(free_port()), "--dashboard-host", "127.0.0.1", "--dashboard-port",
        str(dashboard), "--dashboard-agent-listen-port", str(free_port()), "--num-cpus", str(cpus),
        "--metrics-export-port", str(metrics), "--object-store-memory", str(200 * 1024**2),
        "--resources", json.dumps({"pool-cpu": 1} if cpus else {}),
    ]  # fmt: skip
    head = Head(
        f"http://127.0.0.1:{dashboard}", token, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, scratch,
        f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics",
    )  # fmt: skip
    try:
        with running(command, folder / "head.log", pods, _END) as group:
            yield head, group
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def running_worker(
    head: Head, name: str, folder: Path, environment: Mapping[str, str] | None = None, cpus: int = 2
) -> Iterator[Group]:
    """One more node of the cluster, as the pod `name`, with the pool `cpu`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": path, "RAY_TMPDIR": head.scratch, "RAY_CLOUD_INSTANCE_ID": name}
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--address", head.gcs, "--block", "--num-cpus", str(cpus),
        "--object-store-memory", str(100 * 1024**2), "--resources", '{"pool-cpu": 1}', "--dashboard-agent-listen-port",
        str(free_port()),
    ]  # fmt: skip
    pods = {**os.environ, **head.environment, **(environment or {}), **settings}
    pods.pop("RAY_ADDRESS", None)
    with running(command, folder / f"{name}.log", pods, _END) as group:
        group.wait_until(lambda: "Ray runtime started" in group.log.read_text(), _UP_SECONDS)  # two at once collide
        yield group


def _wait(head: Head, group: Group) -> None:
    def is_up() -> bool:
        noted = Path(head.scratch, "ray", "ray_current_cluster").exists()  # the last thing that a head does
        headers = {"Authorization": f"Bearer {head.token}"}
        try:
            return noted and requests.get(f"{head.address}/api/jobs/", headers=headers, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    group.wait_until(is_up, _UP_SECONDS)
