"""A server's processes as one group: it ends with the block, and with this process, however that may end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Stands above the server in its group, and ends all of it when the pipe from the parent breaks.
_WATCH = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, lambda *_: None)  # the server's to obey
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: os._exit(server.wait() & 255), daemon=True).start()
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Group:
    """A running server."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-c", _WATCH, *command], env=environment, stdin=subprocess.PIPE,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def send(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM, patience: float = 20.0) -> None:
        """Send the signal, and SIGKILL to what has not ended by then."""
        self.send(number)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_until(self, ready: Callable[[], bool], patience: float = 60.0) -> None:
        """AssertionError, with the end of the log, when the server ends or is not ready in time."""
        end = time.monotonic() + patience
        while not ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server did not come up: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    end_by: signal.Signals = signal.SIGTERM,
) -> Iterator[Group]:
    group = Group(command, log, environment)
    try:
        yield group
    finally:
        group.end(end_by)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
