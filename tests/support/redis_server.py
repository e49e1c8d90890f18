"""A Redis for tests that keeps what it is told on disk, can be killed, and comes back. From Debian's `redis-server`."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.groups import Group, free_port, listens


class Redis:
    """At `host`:`port`, for those who have the password."""

    def __init__(self, folder: Path, host: str, password: str) -> None:
        self.host, self.port, self._password = host, free_port(), password
        self._log = folder / "redis.log"
        self._command = [
            "redis-server", "--bind", host, "--port", str(self.port), "--requirepass", password,
            "--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always", "--save", "",
        ]  # fmt: skip
        self._group: Group | None = None

    def start(self) -> None:
        self._group = Group(self._command, self._log)
        self._group.wait_until(lambda: listens(self.port, self.host))

    def keys(self) -> int:
        """How many it holds."""
        words = ["redis-cli", "-h", self.host, "-p", str(self.port), "DBSIZE"]
        environment = {**os.environ, "REDISCLI_AUTH": self._password}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    def kill(self) -> None:
        """As a lost node would: no good-bye."""
        if self._group is not None:
            self._group.end(signal.SIGKILL)
            self._group = None


@contextmanager
def running_redis(folder: Path, host: str, password: str) -> Iterator[Redis]:
    """Skips, saying what to install, where Redis is not there."""
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed: apt-get install --no-install-recommends redis-server")
    redis = Redis(folder, host, password)
    try:
        redis.start()
        yield redis
    finally:
        redis.kill()
