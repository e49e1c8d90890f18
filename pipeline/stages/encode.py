"""encode: the latents of the training split, as raw moments in Parquet, with per-channel statistics of every level.

A shard of latents is the unit of work and of resume. Ray Data streams the shards through a fixed pool of encoders, each
with decoders in processes of their own (`encode_shard.py`); `encode_gate.py` judges every shard. This module is the
driver's part: which shards are missing, and the artifact.
"""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import cluster
from pipeline.artifacts import FileRecord, Manifest, Outcome
from pipeline.data import Decoding, latent_record
from pipeline.errors import DataError, PipelineError
from pipeline.stages.encode_shard import Encoder, Plan, Refused, Shard, record_path
from pipeline.storage import Storage
from pipeline.workflow import StageContext

_BATCH = {"cuda": 128, "cpu": 16}  # a CPU encodes 367 images a second by 16 at a time, 226 by 128


def run(context: StageContext) -> Outcome:
    plan, shards = _plan(context), _shards(context)
    total = sum(shard.rows for shard in shards)
    records = _records(context.storage, context.work, plan)
    refused: set[int] = set()
    deaths = 0
    while missing := [shard for shard in shards if shard.index not in records]:
        before = len(records), len(refused)
        for index, error in _encode(context, plan, missing):
            if isinstance(error, Refused) and index not in refused:
                refused.add(index)  # a device may have failed once: the shard is encoded once more
                continue
            if error is not None:
                raise _final(error)
            records[index] = json.loads(context.storage.read(record_path(context.work, index)))
            done = sum(shard.rows for shard in shards if shard.index in records)
            context.progress(done, total, unit="latents")
        # The stream leaves out the shards of encoders that died.
        deaths += before == (len(records), len(refused))
        if deaths > context.config.cluster.max_failures:
            raise PipelineError(
                f"encode: {len(missing)} shards could not be written, since encoders died in every attempt",
                "Check for lack of memory, or run with --debug to see the workers' output.",
            )
    return _finish(context, [records[shard.index] for shard in shards])


def salvage(storage: Storage, manifest: Manifest, broken: list[str], work: str) -> None:
    """Leave the records of an artifact's whole shards in the work folder, so that `run` encodes only the others."""
    for name, file in manifest.files.items():
        if name not in broken:
            record = json.loads(latent_record(storage, f"{manifest.name}/{name}", file.bytes))
            record |= file.model_dump()
            storage.write(record_path(work, int(Path(name).stem)), json.dumps(record).encode())


def _plan(context: StageContext) -> Plan:
    config = context.config
    return Plan(
        root=context.storage.root,
        prepare=context.inputs["prepare"],
        tokenizer=context.inputs["train-tokenizer"],
        fingerprint=context.fingerprint,
        work=context.work,
        lease=context.lease.holder.nonce,
        decoding=Decoding(config.data.image_size, config.data.center_crop, config.data.max_pixels),
        batch_size=config.encode.batch_size or _BATCH[cluster.device_of(config.cluster)],
        precision=config.encode.precision,
        canary_margin=config.encode.canary_margin,
        retries=config.cluster.max_failures,
    )


def _shards(context: StageContext) -> list[Shard]:
    """The shards of the training split, file by file, of at most `encode.shard_rows` rows."""
    most, shards = context.config.encode.shard_rows, list[Shard]()
    for file in context.inputs["prepare"].details["splits"]["train"]:
        for start in range(0, file["rows"], most):
            shards.append(Shard(len(shards), file["path"], start, min(most, file["rows"] - start)))
    return shards


def _records(storage: Storage, work: str, plan: Plan) -> dict[int, dict[str, Any]]:
    """The records of shards that earlier attempts have made from the same inputs, by index."""
    found = {}
    for entry in storage.list(f"{work}/shards"):
        record = json.loads(storage.read(entry.path))
        if record["inputs"] == plan.inputs:
            found[int(Path(entry.path).stem)] = record
    return found


def _encode(context: StageContext, plan: Plan, shards: list[Shard]) -> Iterator[tuple[int, Exception | None]]:
    """Stream the shards through the pool. Yields each index when the shard is written, or could not be, with the error.

    A shard whose encoder dies is left out: the others go on, and Ray starts another encoder where there is room.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    settings = context.config.cluster
    context_of_ray = ray.data.DataContext.get_current()
    context_of_ray.enable_progress_bars = False
    context_of_ray.max_errored_blocks = -1
    on_gpu = cluster.device_of(settings) == "cuda"
    pool = cluster.encoder_pool(settings, context.stage)
    encoders = min(pool.encoders, len(shards))
    # An encoder works at as many shards at a time as it has decoders, but no encoder takes the shards of another.
    at_once = min(pool.decoders, -(-len(shards) // encoders))
    items = [{"shard": json.dumps(vars(shard))} for shard in shards]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Encoder,
        fn_constructor_args=(plan,),
        compute=ActorPoolStrategy(
            size=encoders,
            max_tasks_in_flight_per_actor=at_once,
            enable_true_multi_threading=True,  # else Ray Data calls one at a time, whatever max_concurrency says
        ),
        num_cpus=1,
        num_gpus=cluster.gpu_share(settings, context.stage) if on_gpu else 0,
        max_concurrency=at_once,
        max_restarts=-1,
        max_task_retries=0,  # a shard would wait for its own encoder, even if there is no room for it any more
        resources=cluster.pool_resources(settings, context.stage),
    )
    with cluster.unwrapped_errors():
        for row in dataset.iter_rows():
            yield int(row["index"]), pickle.loads(row["error"]) if row["error"] else None  # noqa: S301  # our own


def _final(error: Exception) -> Exception:
    if isinstance(error, Refused):
        return DataError(f"{error}, twice", "Use encode.precision=fp32, check the device, or see encode.canary_margin.")
    return error


def _finish(context: StageContext, records: list[dict[str, Any]]) -> Outcome:
    for record in records:
        context.writer.add_stored(record["path"], FileRecord(bytes=record["bytes"], sha256=record["sha256"]))
    rows = sum(record["rows"] for record in records)
    quarantined = [entry for record in records for entry in record["quarantined"]]
    budget = context.config.data.quarantine_budget
    if not rows or len(quarantined) > budget * (rows + len(quarantined)):
        raise DataError(
            f"encode: {len(quarantined)} images can no longer be read, the first is {quarantined[0]['key']}: "
            f"{quarantined[0]['reason']}; that exceeds data.quarantine_budget {budget:g}",
            "Run `python -m pipeline artifact verify`, and repair `prepare`.",
        )
    latent_shape = (context.config.tokenizer.latent_dim, context.config.grid, context.config.grid)
    statistics = _statistics(np.sum([record["sums"] for record in records], axis=0), rows * latent_shape[1] ** 2)
    checks = [record["checks"] for record in records if record["checks"]]
    metrics = {
        "latents/rows": float(rows),
        "latents/quarantined": float(len(quarantined)),
        "latents/canary_psnr": float(np.mean([check["canary_psnr"] for check in checks])),
    }
    return context.writer.outcome(
        rows,
        metrics,
        latent_shape=list(latent_shape),
        statistics=statistics,
        shards=[{"path": record["path"], "rows": record["rows"]} for record in records],
        quarantined=quarantined,
        canary_loss=max(check["own_psnr"] - check["canary_psnr"] for check in checks),  # dB, of the worst shard
    )


def _statistics(sums: np.ndarray, count: int) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation per channel for each level, from sums (levels, 2, D). DataError if out of range."""
    statistics = {}
    for level, (total, square) in enumerate(sums):
        mean = total / count
        std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
        if not (np.isfinite(mean).all() and (std > 1e-6).all() and (std < 1e6).all()):
            raise DataError(
                f"encode: the latents' statistics at level {level} are out of range", "Retrain the tokenizer."
            )
        statistics[str(level)] = {"mean": mean.tolist(), "std": std.tolist()}
    return statistics
