"""Ray Train around the loop of `training.py`: workers, restarts, preemption, and the driver's view of the run.

The driver describes a job in plain data; each worker builds its trainee from it and calls `train`.
"""

import errno
import json
import math
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline import cluster
from pipeline.artifacts import SHORT, ArtifactWriter, FileRecord, Manifest, Outcome
from pipeline.config import Config
from pipeline.context import StageContext
from pipeline.errors import ContractError, LeaseError, PipelineError, StorageError
from pipeline.s3 import S3Storage
from pipeline.storage import Storage, open_storage, refusal

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    config: Config
    stage: str
    fingerprint: str
    root: str
    work: str
    lease: str
    outbox: str
    inputs: dict[str, Manifest]
    threads: int
    device: str
    watched: bool  # may notices of preemption come?


def run_training(context: StageContext, **details: Any) -> Outcome:
    """Train on Ray Train until the artifact's files are there. Called again, it goes on where it was.

    `details` go into the manifest. PipelineError with what the workers refused, or why they could not go on.
    """
    storage, work = context.storage, context.work
    storage.delete(f"{work}/failure.json")
    if not storage.exists(f"{work}/result.json"):
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(context, stop), name="progress", daemon=True)
        watcher.start()
        try:
            _fit(context)
        finally:
            stop.set()
            watcher.join()
    _raise_refusal(context)
    result = json.loads(storage.read(f"{work}/result.json"))
    for name, record in result["files"].items():
        context.writer.add_stored(name, FileRecord.model_validate(record))
    settings = _section(context.config, context.stage)
    _draw_losses(context)
    metrics = {f"{_PREFIX[context.stage]}/{name}": value for name, value in result["metrics"].items()}
    return context.writer.outcome(settings.steps, metrics, **details)


def _draw_losses(context: StageContext) -> None:
    """The history as a picture, drawn in a task: the driver has no matplotlib."""
    spec = CurvesSpec(context.storage.root, context.stage, context.fingerprint)
    (record,) = context.map(draw_losses, [spec], [1], unit="picture")
    context.writer.add_stored("losses.png", FileRecord.model_validate(record))
    context.show("losses.png")


@dataclass(frozen=True)
class CurvesSpec:
    """Whose history."""

    root: str
    stage: str
    fingerprint: str


def draw_losses(spec: CurvesSpec) -> dict[str, Any]:
    """losses.png beside history.jsonl; its record."""
    from pipeline.figures import loss_curves

    writer = ArtifactWriter(open_storage(spec.root), spec.stage, spec.fingerprint)
    lines = writer.storage.read(f"{writer.folder}/history.jsonl").splitlines()
    writer.add_bytes(loss_curves([json.loads(line) for line in lines], spec.stage), "losses.png")
    return writer.files["losses.png"].model_dump()


_PREFIX = {"train-tokenizer": "tokenizer", "train-sit": "sit"}


def _section(config: Config, stage: str) -> Any:
    return getattr(config, _PREFIX[stage])


def _fit(context: StageContext) -> None:
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    settings = context.config.cluster
    device, threads = cluster.device_of(settings), cluster.threads_per_worker(settings)
    job = Job(
        config=context.config,
        stage=context.stage,
        fingerprint=context.fingerprint,
        root=context.storage.root,
        work=context.work,
        lease=context.lease.holder.nonce,
        outbox=context.outbox.key,
        inputs=context.inputs,
        threads=threads,
        device=device,
        watched=not cluster.is_local(),
    )
    workers: Any = settings.workers if settings.min_workers is None else (settings.min_workers, settings.workers)
    resources = {"CPU": threads, **cluster.pool_resources(settings, context.stage)}
    trainer: dict[str, Any] = {
        "train_loop_per_worker": run_worker,
        "train_loop_config": {"job": job},
        "torch_config": TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
        "scaling_config": ScalingConfig(num_workers=workers, use_gpu=device == "cuda", resources_per_worker=resources),
        "run_config": RunConfig(
            name=context.fingerprint[:SHORT],
            failure_config=FailureConfig(max_failures=settings.max_failures),
            **_ray_storage(context.storage, f"{context.work}/train"),
        ),
    }

    class Trainer(TorchTrainer):  # type: ignore[misc]
        """Ray's, less what does harm here."""

        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's own handler would end the run on Ctrl-C as if nothing had happened, with exit code 0."""

        def _create_default_callbacks(self) -> list[Any]:
            """A local Ray has no dashboard, without which the cleaner can do nothing: one process less to start."""
            kept: list[Any] = super()._create_default_callbacks()
            if cluster.is_local():
                kept = [one for one in kept if not isinstance(one, PlacementGroupCleanerCallback)]
            return kept

    for attempts_left in reversed(range(settings.max_failures + 1)):
        try:
            Trainer(**trainer).fit()
            return
        except (ControllerError, RayActorError) as error:  # Ray restarts workers, but not what restarts them
            _raise_refusal(context)
            cluster.free_placement_groups()
            if not attempts_left:
                raise _failed(context, error) from error
        except TrainingFailedError as error:
            _raise_refusal(context)
            raise _failed(context, error) from error


def _ray_storage(storage: Storage, path: str) -> dict[str, Any]:
    """Where Ray Train keeps its own notes: with the settings and the patience that S3 has elsewhere."""
    if isinstance(storage, S3Storage):
        return {"storage_path": storage.arrow_path(path), "storage_filesystem": storage.arrow_files(lasting=True)}
    return {"storage_path": storage.uri(path)}


def _failed(context: StageContext, error: Exception) -> PipelineError:
    return PipelineError(
        f"{context.stage}: training failed on the workers: {_last_line(error)}",
        "Run again to go on from the last checkpoint; --debug shows the workers' output.",
    )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _raise_refusal(context: StageContext) -> None:
    """What a worker said before it gave up for good."""
    try:
        failure = json.loads(context.storage.read(f"{context.work}/failure.json"))
    except FileNotFoundError:
        return
    kinds = {kind.__name__: kind for kind in (PipelineError, LeaseError, ContractError)}
    raise kinds.get(failure["kind"], PipelineError)(failure["what"], failure["mend"])


def _watch(context: StageContext, stop: threading.Event) -> None:
    """Show the workers' position."""
    total = _section(context.config, context.stage).steps
    while not stop.wait(_POLL_SECONDS):
        try:
            line = json.loads(context.storage.read(f"{context.work}/progress.json"))
        except (FileNotFoundError, ValueError, PipelineError):
            continue  # not there yet, or the storage is away: the next look will tell
        shown = {name: value for name, value in line.items() if name in ("loss", "mse", "adversarial", "alignment")}
        context.progress(int(line["step"]), total, unit="steps", **shown)


def run_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on each worker."""
    import torch

    job: Job = config["job"]
    storage = open_storage(job.root)
    torch.set_num_threads(job.threads)
    world = _world(job)
    if world.shared(storage.exists(f"{job.work}/failure.json") if world.rank == 0 else None):
        return  # an earlier attempt gave up for good; Ray has only started it again
    try:
        _train(job, world)
    except (PipelineError, OSError) as failure:  # not to be tried again: said to the driver instead
        if isinstance(failure, OSError) and failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        error = refusal(failure) if isinstance(failure, OSError) else failure
        said = {"kind": type(error).__name__, "what": error.what, "mend": error.mend}
        with suppress(StorageError):  # a full disk may not take even that; then Ray's word has to do
            storage.write(f"{job.work}/failure.json", json.dumps(said).encode())
        raise


def _world(job: Job) -> Any:
    import ray.train
    import ray.train.torch
    import torch

    from pipeline.training import World

    ranks = ray.train.get_context()
    device = ray.train.torch.get_device() if job.device == "cuda" else torch.device("cpu")
    assert isinstance(device, torch.device)
    return World(ranks.get_world_rank(), ranks.get_world_size(), device)


def _train(job: Job, world: Any) -> None:
    from pipeline.training import Loop, measured_peak, train

    if job.device == "cuda":
        _settle_cuda(job.config.cluster.deterministic)
    settings = _section(job.config, job.stage)
    storage = open_storage(job.root)
    loop = Loop(
        name=_PREFIX[job.stage],
        steps=settings.steps,
        batch_size=settings.batch_size,
        checkpoint_every=settings.checkpoint_every,
        log_every=settings.log_every,
        keep=job.config.cluster.keep_checkpoints,
        storage=storage,
        work=job.work,
        lease=job.lease,
        outbox=job.outbox,
        stage=job.stage,
        fingerprint=job.fingerprint,
        peak_flops=measured_peak(world.device) * world.size,
    )
    trainee: Any
    if job.stage == "train-tokenizer":
        from pipeline.tokenizer_trainee import TokenizerTrainee

        trainee = TokenizerTrainee(job.config, storage, job.inputs, world)
    else:
        from pipeline.sit_trainee import SitTrainee

        trainee = SitTrainee(job.config, storage, job.inputs, world)
    train(trainee, loop, world, _notice if job.watched else lambda: None)


def _notice() -> float | None:
    """When the first node of the group goes away, as Ray has heard; in `training.train`'s terms."""
    import ray.train

    told = ray.train.get_preemption_info()
    if told is None:
        return None
    return told.deadline_ms / 1000 if told.deadline_ms else math.inf


def _settle_cuda(deterministic: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
