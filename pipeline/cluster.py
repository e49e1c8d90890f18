"""Ray: joining the cluster a job was submitted to or starting a local one, and running a stage's tasks on it."""

import logging
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError
from pipeline.storage import refusal

_NODE_SECONDS = 600.0  # for a node that has been lost or is about to join
_WITHOUT_DEVICE = ("prepare", "register")
_LOCAL_OBJECT_STORE = 400 * 1024**2  # bytes: a laptop's stages exchange little

# Told to Ray before it starts. Its own chatter goes to its log files; the screen is the pipeline's.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_task_oom_retries": "3",  # Ray's default is to try for ever
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths in a config mean the same everywhere
}
_LOCAL_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody drains a laptop
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
}


@contextmanager
def diverted_output(debug: bool) -> Iterator[Path]:
    """Send what Ray prints in this process (from Python and C++ alike) to a file, unless `debug`.

    Yields the file's path; it goes away when nothing went wrong. The pipeline's own words go through a console of
    their own (`console.own_console`).
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
    """Will `connect` start a Ray of its own? (A submitted job finds RAY_ADDRESS set.)"""
    return "RAY_ADDRESS" not in os.environ


def set_environment() -> None:
    """Tell Ray what it reads once, when it is imported: call this first."""
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    if is_local():
        os.environ.update({name: value for name, value in _LOCAL_ENVIRONMENT.items() if name not in os.environ})
        # Always said: unset, Ray would turn tokens on by itself and leave one in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def connect(config: ClusterConfig, debug: bool = False, trains: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or start a local one that ends with this process.

    `trains`: stages on Ray Train or Ray Data will come, so what they start first may start now.
    """
    import ray

    level = logging.INFO if debug else logging.CRITICAL
    options: dict[str, Any] = {"log_to_driver": debug, "logging_level": level, "configure_logging": debug}
    if is_local():
        cpus = max(len(os.sched_getaffinity(0)), config.workers * (config.cpus_per_worker or 1), 2)
        # "local", or Ray would join whatever cluster somebody has started on this machine.
        options.update(address="local", num_cpus=cpus, include_dashboard=False)
        options.update(object_store_memory=_LOCAL_OBJECT_STORE)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # which Ray raises as such when its node does not come up in time
        raise PipelineError(
            f"Ray did not start: {' '.join(str(error).split())[:300]}",
            "On a machine that is busy, try again; else look into /tmp/ray/session_latest/logs, or run with --debug.",
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray's own handler would skip our clean-up
    if trains and is_local():
        _start_coordinator()
    if not debug:
        for name in ("ray", "ray.train", "ray.data", "ray.serve"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _start_coordinator() -> None:
    """Start the actor that Ray Train and Ray Data ask for resources.

    They would start it themselves and wait for its imports; so these pass beside the stages before.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    get_or_create_autoscaling_coordinator()


def disconnect() -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()


def free_placement_groups() -> None:
    """Give back what a dead train controller had reserved on a local Ray.

    Ray leaves that to an actor which asks the dashboard whether the controller lives; a local Ray has none.
    """
    if not is_local():
        return
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def device_of(config: ClusterConfig) -> str:
    """cpu or cuda, as set or as the cluster has it."""
    if config.device != "auto":
        return config.device
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"


def threads_per_worker(config: ClusterConfig) -> int:
    """CPUs, and torch threads, of one training worker: as set, or its fair share of the CPUs."""
    if config.cpus_per_worker is not None:
        return config.cpus_per_worker
    import ray

    return max(1, min(8, int(ray.cluster_resources().get("CPU", 1)) // config.workers))


def pool_resources(config: ClusterConfig, stage: str) -> dict[str, float]:
    """The Ray resources that mark the pool of a stage; empty where any node will do."""
    return dict(config.pools.get(stage, {}))


def await_pool(config: ClusterConfig, stage: str, say: Callable[[str], None]) -> None:
    """Return when a node could take the stage's work, or an autoscaler is there to add one.

    Ray would wait for ever, and say nothing here. PipelineError where no node comes.
    """
    wanted = {"CPU": 1.0, **pool_resources(config, stage)}
    if stage not in _WITHOUT_DEVICE and device_of(config) == "cuda":
        wanted["GPU"] = 1.0
    begin, told = time.monotonic(), False
    while not _has_node(wanted):
        words = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items())
        if _is_autoscaled():
            say(
                f"{stage}: no node of its pool yet ({words}): the autoscaler is asked for one; where none comes, "
                "`python -m deploy doctor` says why"
            )
            return
        if is_local() or time.monotonic() - begin > _NODE_SECONDS:
            raise PipelineError(
                f"{stage} wants a node with {words}, and there is none, nor an autoscaler that would add one",
                "Start such a node, or correct cluster.device and cluster.pools.",
            )
        if not told:
            say(f"{stage}: no node of its pool yet ({words}): waiting up to {_NODE_SECONDS:.0f} s for one")
            told = True
        time.sleep(2.0)


def _has_node(wanted: dict[str, float]) -> bool:
    import ray

    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(one.get(name, 0.0) >= amount for name, amount in wanted.items()) for one in has)


def _is_autoscaled() -> bool:
    """Has an autoscaler reported to this cluster?"""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Cython, without types
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    return bool(reply.autoscaling_state.autoscaler_state_version > 0)


def run_tasks(
    function: Callable[[Any], Any], specs: Sequence[Any], config: ClusterConfig, stage: str, gpu: bool
) -> Iterator[tuple[int, Any]]:
    """Run `function(spec)` for each spec as a Ray task; yields (index, result) in the order of completion.

    A task whose worker or node dies is run again, `max_failures` times. What the function raises is raised here.
    """
    import ray

    options: dict[str, Any] = {
        "max_retries": config.max_failures,
        "num_cpus": 1,
        "resources": pool_resources(config, stage),
    }
    if gpu and device_of(config) == "cuda":
        options.update(num_gpus=1, max_calls=0)  # the worker stays, and with it the loaded model
    task = ray.remote(**options)(function)
    with surfaced():
        pending = {task.remote(spec): index for index, spec in enumerate(specs)}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            yield pending.pop(done), ray.get(done)


@contextmanager
def surfaced() -> Iterator[None]:
    """Raise what a task raised, not Ray's wrapper of it."""
    from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, PipelineError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno is not None:
            raise refusal(cause) from None
        raise
    except OutOfMemoryError as error:
        raise PipelineError("out of memory: Ray ended a task", "Lower the stage's batch_size.") from error
    except WorkerCrashedError as error:
        raise PipelineError(
            "a task's process died, again each time it was run anew",
            "Out of memory? See the kernel's log, and Ray's in /tmp/ray/session_latest/logs.",
        ) from error
