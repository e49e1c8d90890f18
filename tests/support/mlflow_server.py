"""An MLflow server for tests, one worker, that can be killed and comes back at the same address."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.groups import Group, free_port

_UP_SECONDS = 120.0


class MlflowServer:
    """At `uri`. Artifacts go through it to `artifacts` (file:// or s3://)."""

    def __init__(
        self, folder: Path, store: str | None = None, artifacts: str | None = None, *options: str, **environment: str
    ) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "mlflow-server.log"
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", store or f"sqlite:///{folder}/server.db",
            "--artifacts-destination", artifacts or (folder / "server-artifacts").as_uri(), *options,
        ]  # fmt: skip
        mine = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "GIT_PYTHON_REFRESH": "quiet"}
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.environment = {**theirs, **mine, **environment}
        self._group: Group | None = None

    def start(self, wait: bool = True) -> None:
        self._group = Group(self.command, self.log, self.environment)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        assert self._group is not None
        self._group.wait_until(self.is_up, _UP_SECONDS)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def purge(self, run_id: str) -> None:
        """Remove a deleted run from the database, as `mlflow gc` does."""
        store = self.command[self.command.index("--backend-store-uri") + 1]
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store, "--run-ids", run_id]
        environment = {**self.environment, "MLFLOW_TRACKING_URI": self.uri}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)

    def kill(self) -> None:
        """As a lost node would: no good-bye."""
        self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._group is not None:
            self._group.end(number)
            self._group = None


@contextmanager
def running_mlflow(
    folder: Path, store: str | None = None, artifacts: str | None = None, *options: str, **environment: str
) -> Iterator[MlflowServer]:
    server = MlflowServer(folder, store, artifacts, *options, **environment)
    try:
        server.start()
        yield server
    finally:
        server.stop()
