"""Runs a stage's work as Ray tasks, and re-raises the errors of tasks in the driver."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.cluster.pools import device_of, gpu_share, pool_resources
from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError
from pipeline.storage import storage_error


def run_tasks(
    function: Callable[[Any], Any], specs: Sequence[Any], config: ClusterConfig, stage: str, gpu: bool
) -> Iterator[tuple[int, Any]]:
    """Run `function(spec)` for each spec as a Ray task; yields (index, result) in the order of completion.

    A task whose worker or node dies is retried up to `max_failures` times. Exceptions of the function are raised here.
    """
    import ray

    options: dict[str, Any] = {
        "max_retries": config.max_failures,
        "num_cpus": 1,
        "resources": pool_resources(config, stage),
    }
    if gpu and device_of(config) == "cuda":
        options.update(num_gpus=gpu_share(config, stage), max_calls=0)  # keep the worker and its loaded model
    task = ray.remote(**options)(function)
    with unwrapped_errors():
        pending = {task.remote(spec): index for index, spec in enumerate(specs)}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            yield pending.pop(done), ray.get(done)


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Raise the original exception of a task instead of Ray's wrapper."""
    from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, PipelineError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno is not None:
            raise storage_error(cause) from None
        raise
    except OutOfMemoryError as error:
        raise PipelineError("out of memory: Ray killed a task", "Lower the stage's batch_size.") from error
    except WorkerCrashedError as error:
        raise PipelineError(
            "a task's process died in every attempt",
            "Check for lack of memory: see the kernel's log, and Ray's in /tmp/ray/session_latest/logs.",
        ) from error
