"""A Ray cluster of one node with token authentication, as its own process group, for tests of what submits to it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

_UP_SECONDS = 90.0


@dataclass(frozen=True)
class Head:
    address: str  # of the dashboard
    token: str
    environment: dict[str, str]  # what a client needs to reach it
    scratch: str  # as RAY_TMPDIR, where Ray notes that this head is on this machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_head(folder: Path, **environment: str) -> Iterator[Head]:
    """`environment` is that of the pods: what jobs see."""
    token, dashboard = secrets.token_hex(32), free_port()
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    scratch = tempfile.mkdtemp(prefix="dvae-")  # short: Ray's sockets lie below it
    pods = {**os.environ, **settings, **environment, "PATH": path, "RAY_TMPDIR": scratch}
    pods.pop("RAY_ADDRESS", None)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", str(free_port()),
        "--ray-client-server-port", str(free_port()), "--dashboard-host", "127.0.0.1", "--dashboard-port",
        str(dashboard), "--dashboard-agent-listen-port", str(free_port()), "--num-cpus", "2",
        "--object-store-memory", str(200 * 1024**2), "--resources", '{"pool-cpu": 1}',
    ]  # fmt: skip
    with open(folder / "head.log", "wb") as log:
        process = subprocess.Popen(
            command, env=pods, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        head = Head(
            f"http://127.0.0.1:{dashboard}", token, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, scratch
        )
        _wait(head, process, folder / "head.log")
        yield head
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _wait(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _UP_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            asked = requests.get(
                f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}, timeout=5
            )
            noted = Path(head.scratch, "ray", "ray_current_cluster").exists()  # the last thing that a head does
            if asked.status_code == 200 and noted:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the head did not come up: {log.read_text()[-2000:]}")
