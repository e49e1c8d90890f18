"""Runs the training loop on Ray Train: workers, restarts, preemption notices, progress at the driver.

The driver describes a job as plain data; each worker builds its trainee from it and trains (`worker.py`).
"""

import errno
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline import cluster
from pipeline.artifacts import SHORT, ArtifactWriter, FileRecord, Manifest, Outcome
from pipeline.errors import ContractError, LeaseError, PipelineError, StorageError
from pipeline.metrics import METRICS
from pipeline.storage import open_storage, storage_error
from pipeline.training.job import Job
from pipeline.training.progress import show_progress
from pipeline.workflow import (
    SECTIONS,
    StageContext,
    checkpoint_step,
    remembered_start,
    shorter_training,
    start_of,
    steps_of,
)

_POLL_SECONDS = 0.5


def run_training(context: StageContext, **details: Any) -> Outcome:
    """Train on Ray Train until the artifact's files are written; resumes an earlier attempt.

    `details` are stored in the manifest, with what it started from, the shorter training that it went on from, and the
    device time of all steps. PipelineError if the workers raise one, if training fails on them, or as `start_of`.
    """
    storage, work, job = context.storage, context.work, _job(context)
    if job.shorter is not None:
        details["went_on_from"] = {"artifact": job.shorter.name, "step": steps_of(job.shorter)}
    if (started := _started_from(context, job)) is not None:
        details["started_from"] = started
    for left in ("failure.json", "progress.json"):  # of an earlier attempt
        storage.delete(f"{work}/{left}")
    if not storage.exists(f"{work}/result.json"):
        with _progress_shown(context, job):
            fit(job)
    _raise_worker_error(job)
    result = json.loads(storage.read(f"{work}/result.json"))
    for name, record in result["files"].items():
        context.writer.add_stored(name, FileRecord.model_validate(record))
    context.figure(draw_losses, CurvesSpec(storage.root, context.stage, context.fingerprint), "losses.png")
    metrics = {f"{SECTIONS[context.stage]}/{name}": value for name, value in result["metrics"].items()}
    return context.writer.outcome(job.section.steps, metrics, **details, device_seconds=result["device_seconds"])


def _job(context: StageContext) -> Job:
    return Job(
        config=context.config,
        stage=context.stage,
        fingerprint=context.fingerprint,
        work=context.work,
        lease=context.lease.holder.nonce,
        outbox=context.outbox.key,
        inputs=context.inputs,
        threads=cluster.threads_per_worker(context.config.cluster),
        start=start_of(context.config, context.stage),
        shorter=going_on_from(context),
    )


def going_on_from(context: StageContext) -> Manifest | None:
    """The finished training of fewer steps that this one goes on from; None if it begins at its first step.

    It is chosen until there is a checkpoint, and then remembered in the work folder.
    """
    path = f"{context.work}/shorter.json"
    if checkpoint_step(context.storage, context.work) is None:
        shorter, reason = shorter_training(context.config, context.stage)
        context.storage.delete(path)
        if shorter is not None:
            context.storage.write(path, shorter.model_dump_json().encode())
            context.say(f"goes on from {shorter.name} at step {steps_of(shorter)}")
        elif reason is not None:
            context.say(reason)
        return shorter
    try:
        return Manifest.model_validate_json(context.storage.read(path))
    except FileNotFoundError:
        return None


def _started_from(context: StageContext, job: Job) -> dict[str, str] | None:
    """The artifact that the training started from, by name and content; that of the shorter one, if it goes on from it.

    The fingerprint says which recipe; trained again, on other hardware say, that has another content.
    """
    if job.shorter is not None:
        known: dict[str, str] | None = job.shorter.details.get("started_from")
        return known
    start = remembered_start(context.storage, context.work, job.start)
    return None if start is None else {"artifact": start.name, "content": start.content}


@dataclass(frozen=True)
class CurvesSpec:
    """The artifact whose history is drawn."""

    root: str
    stage: str
    fingerprint: str


def draw_losses(spec: CurvesSpec) -> dict[str, Any]:
    """Write losses.png next to history.jsonl; returns its file record."""
    from pipeline.reports import loss_curves

    writer = ArtifactWriter(open_storage(spec.root), spec.stage, spec.fingerprint)
    lines = writer.storage.read(f"{writer.folder}/history.jsonl").splitlines()
    writer.add_bytes(loss_curves([json.loads(line) for line in lines], spec.stage), "losses.png")
    return writer.files["losses.png"].model_dump()


# --- the driver ---


def fit(job: Job) -> None:
    """Run the job's workers on Ray Train to the end.

    Ray restarts failed workers, but not its controller: that is restarted here.
    """
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, TrainingFailedError

    trainer, settings = cluster.torch_trainer(cluster.is_local()), job.config.cluster
    for attempts_left in reversed(range(settings.max_failures + 1)):
        try:
            trainer(**_trainer_arguments(job)).fit()
            return
        except (ControllerError, RayActorError) as error:
            _raise_worker_error(job)
            cluster.free_placement_groups()
            if not attempts_left:
                raise _failed(job, error) from error
        except TrainingFailedError as error:
            _raise_worker_error(job)
            raise _failed(job, error) from error


def _trainer_arguments(job: Job) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from pipeline.storage import arrow_files

    settings = job.config.cluster
    gpu = cluster.device_of(settings) == "cuda"
    workers: Any = settings.workers if settings.min_workers is None else (settings.min_workers, settings.workers)
    resources = {"CPU": job.threads, **cluster.pool_resources(settings, job.stage)}
    return {
        "train_loop_per_worker": run_worker,
        "train_loop_config": {"job": job, "gpu": gpu, "watched": not cluster.is_local()},
        "torch_config": TorchConfig(backend="nccl" if gpu else "gloo"),
        "scaling_config": ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
        "run_config": RunConfig(
            name=job.fingerprint[:SHORT],
            failure_config=FailureConfig(max_failures=settings.max_failures),
            storage_path=f"{job.work}/train",  # in the file system of the next line: for Ray's own files
            storage_filesystem=arrow_files(open_storage(job.config.root)),
        ),
    }


def _failed(job: Job, error: Exception) -> PipelineError:
    return PipelineError(
        f"{job.stage}: training failed on the workers: {_last_line(error)}",
        "Run again to resume from the last checkpoint; add --debug to see the workers' output.",
    )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _raise_worker_error(job: Job) -> None:
    """Raise the error that a worker recorded before it gave up, if any."""
    try:
        failure = json.loads(open_storage(job.config.root).read(f"{job.work}/failure.json"))
    except FileNotFoundError:
        return
    kinds = {kind.__name__: kind for kind in (PipelineError, LeaseError, ContractError)}
    raise kinds.get(failure["kind"], PipelineError)(failure["what"], failure["hint"])


@contextmanager
def _progress_shown(context: StageContext, job: Job) -> Iterator[None]:
    """Show the workers' progress while the block runs."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(context, job, stop), name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _watch(context: StageContext, job: Job, stop: threading.Event) -> None:
    shown = {metric.key.partition("/")[2] for metric in METRICS if metric.beside_bar}
    while not stop.wait(_POLL_SECONDS):
        show_progress(context.storage, job, shown, context.progress)


# --- a worker ---


def run_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on each worker."""
    job: Job = config["job"]
    storage, world = open_storage(job.config.root), _world(config["gpu"])
    if world.shared(storage.exists(f"{job.work}/failure.json") if world.rank == 0 else None):
        return  # an earlier attempt failed for good; do nothing when Ray restarts it
    from pipeline.training.worker import no_notice, train_as

    notice: Callable[[], float | None] = _notice if config["watched"] else no_notice
    try:
        train_as(world, job, notice)
    except (PipelineError, OSError) as failure:  # do not retry: report to the driver
        if isinstance(failure, OSError) and failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        error = storage_error(failure) if isinstance(failure, OSError) else failure
        record = {"kind": type(error).__name__, "what": error.what, "hint": error.hint}
        with suppress(StorageError):  # the disk may be full; then the driver has only Ray's error
            storage.write(f"{job.work}/failure.json", json.dumps(record).encode())
        raise


def _world(gpu: bool) -> Any:
    import ray.train
    import ray.train.torch
    import torch

    from pipeline.training.world import World

    ranks = ray.train.get_context()
    device = ray.train.torch.get_device() if gpu else torch.device("cpu")
    assert isinstance(device, torch.device)
    return World(ranks.get_world_rank(), ranks.get_world_size(), device, ranks.get_node_rank(), ranks.get_local_rank())


def _notice() -> float | None:
    """When the first node of the group will be preempted, from Ray; the return value as in `loop.train`."""
    import ray.train

    info = ray.train.get_preemption_info()
    if info is None:
        return None
    return info.deadline_ms / 1000 if info.deadline_ms else math.inf
