"""Connects to the Ray cluster that a job was submitted to, or starts a local one that ends with this process."""

import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError

_LOCAL_OBJECT_STORE = 400 * 1024**2  # bytes: local stages exchange little data

# Set before Ray starts. Ray's own output goes to its log files, not to the terminal.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_task_oom_retries": "3",  # Ray's default is to retry forever
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so relative paths in a config are the same in all processes
}
_LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a local node is never drained
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    # An idle worker has its imports behind it, but Ray ends it after a second.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}


@contextmanager
def diverted_output(debug: bool) -> Iterator[Path]:
    """Redirect stdout and stderr of this process (Python and C++), for Ray's output, to a file, unless `debug`.

    Yields the file's path; the file is deleted if no error is raised. The pipeline prints through a separate console
    (`console.own_console`).
    """
    path = Path(tempfile.gettempdir()) / f"dvae-{os.getpid()}.log"
    if debug:
        yield path
        return
    saved = {number: os.dup(number) for number in (1, 2)}
    with open(path, "ab") as log:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(log.fileno(), number)
    try:
        yield path
        path.unlink(missing_ok=True)
    finally:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(saved[number], number)
            os.close(saved[number])


def is_local() -> bool:
    """Whether `connect` starts a local Ray. (RAY_ADDRESS is set in submitted jobs.)"""
    return "RAY_ADDRESS" not in os.environ


def set_environment() -> None:
    """Set the environment variables that Ray reads on import: call this first."""
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    if is_local():
        os.environ.update({name: value for name, value in _LOCAL_ENVIRONMENT.items() if name not in os.environ})
        # Always set, and never empty: Ray enables tokens by itself, and where it finds none it writes one to the home
        # folder, which everybody may read.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)


def connect(config: ClusterConfig, debug: bool = False) -> None:
    """Connect to the cluster at RAY_ADDRESS, or start a local one that ends with this process."""
    import ray

    level = logging.INFO if debug else logging.CRITICAL
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": level, "configure_logging": debug}
    if is_local():
        cpus = max(len(os.sched_getaffinity(0)), config.workers * (config.cpus_per_worker or 1), 2)
        # "local", as Ray would otherwise join any cluster running on this machine.
        options.update(address="local", num_cpus=cpus, include_dashboard=False)
        options.update(object_store_memory=_LOCAL_OBJECT_STORE)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises a bare Exception if its node does not start in time
        raise PipelineError(
            f"Ray did not start: {' '.join(str(error).split())[:300]}",
            "Retry if the machine is overloaded; else check /tmp/ray/session_latest/logs, or run with --debug.",
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray's handler would skip the pipeline's cleanup
    if not debug:
        for name in ("ray", "ray.train", "ray.data", "ray.serve"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def disconnect() -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
