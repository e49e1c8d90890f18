"""encode: the latents of the training split, as raw moments in Parquet, with per-channel statistics of every level.

Ray Data streams chunks of images through CPU decoding, a fixed pool of encoders and one writer. A shard of latents is
the unit of work and of resume. A row in the stream is a whole chunk, so that a forward pass always has the same batch
and the moments are reproducible, even if workers die.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from models.choices import LEVELS
from pipeline import cluster
from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, Outcome, checked_copy
from pipeline.errors import DataError, PipelineError
from pipeline.storage import open_storage
from pipeline.workflow import StageContext

_CANARIES = 8  # images per shard that are decoded as a check


@dataclass(frozen=True)
class Plan:
    """The settings of every worker."""

    root: str
    prepare: Manifest
    tokenizer: Manifest
    fingerprint: str
    work: str
    image_size: int
    center_crop: bool
    max_pixels: int
    batch_size: int
    bf16: bool
    latent_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Shard:
    """One file of latents, from rows `start` to `start + rows - 1` of a prepared file."""

    index: int
    source: str
    start: int
    rows: int


def run(context: StageContext) -> Outcome:
    plan, shards = _plan(context), _shards(context)
    total = sum(shard.rows for shard in shards)
    records = _records(context)
    while missing := [shard for shard in shards if shard.index not in records]:
        before = len(records)
        for index in _encode(context, plan, missing):
            records[index] = json.loads(context.storage.read(_record_path(context.work, index)))
            done = sum(shard.rows for shard in shards if shard.index in records)
            context.progress(done, total, unit="latents")
        if len(records) == before:  # if a writer dies, its incomplete shards are lost and encoded again
            raise PipelineError(
                f"encode: {len(missing)} shards could not be written", "Run with --debug to see the workers' output."
            )
    return _finish(context, plan, [records[shard.index] for shard in shards])


def _plan(context: StageContext) -> Plan:
    config = context.config
    return Plan(
        root=context.storage.root,
        prepare=context.inputs["prepare"],
        tokenizer=context.inputs["train-tokenizer"],
        fingerprint=context.fingerprint,
        work=context.work,
        image_size=config.data.image_size,
        center_crop=config.data.center_crop,
        max_pixels=config.data.max_pixels,
        batch_size=config.encode.batch_size,
        bf16=config.encode.precision == "bf16",
        latent_shape=(config.tokenizer.latent_dim, config.grid, config.grid),
    )


def _shards(context: StageContext) -> list[Shard]:
    """The shards of the training split, file by file, of at most `encode.shard_rows` rows."""
    most, shards = context.config.encode.shard_rows, list[Shard]()
    for file in context.inputs["prepare"].details["splits"]["train"]:
        for start in range(0, file["rows"], most):
            shards.append(Shard(len(shards), file["path"], start, min(most, file["rows"] - start)))
    return shards


def _record_path(work: str, index: int) -> str:
    return f"{work}/shards/{index:05d}.json"


def _records(context: StageContext) -> dict[int, dict[str, Any]]:
    """The records of shards that earlier attempts have written, by index."""
    found = [entry.path for entry in context.storage.list(f"{context.work}/shards")]
    return {int(Path(path).stem): json.loads(context.storage.read(path)) for path in found}


def _encode(context: StageContext, plan: Plan, shards: list[Shard]) -> Iterator[int]:
    """Stream the shards through Ray Data; yields the index of each shard when it is written."""
    import ray.data
    from ray.data import ActorPoolStrategy

    settings = context.config.cluster
    context_of_ray = ray.data.DataContext.get_current()
    context_of_ray.enable_progress_bars = False
    context_of_ray.raise_original_map_exception = True  # else every error is a "UserCodeException"
    gpus = {"num_gpus": 1} if cluster.device_of(settings) == "cuda" else {"num_cpus": 1}
    pool: dict[str, Any] = {"resources": cluster.pool_resources(settings, context.stage)}
    items = [{"shard": json.dumps(vars(shard))} for shard in shards]
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .flat_map(decode_chunks, fn_args=(plan,), num_cpus=1)
        .map(
            Encoder,
            fn_constructor_args=(plan,),
            compute=ActorPoolStrategy(size=settings.encode_actors),
            **gpus,
            **pool,
        )
        .flat_map(Writer, fn_constructor_args=(plan,), compute=ActorPoolStrategy(size=1), num_cpus=0)
    )
    with cluster.unwrapped_errors():
        for row in dataset.iter_rows():
            yield int(row["index"])


def decode_chunks(row: dict[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """A shard's images in chunks of `batch_size`: uint8 pixels (b, 3, H, W), keys, labels, unreadable images."""
    from pipeline.data import UnreadableImage, decode_image, transform

    shard = Shard(**json.loads(row["shard"]))
    examples = _examples(plan, shard)
    kept: list[tuple[str, int, np.ndarray]] = []
    lost: list[dict[str, str]] = []

    def read(example: dict[str, Any]) -> tuple[str, int, np.ndarray] | dict[str, str]:
        try:
            image = decode_image(example["image"], plan.max_pixels)
        except UnreadableImage as error:
            return {"key": example["key"], "reason": error.reason}
        return example["key"], example["label"], transform(image, plan.image_size, plan.center_crop)

    with ThreadPoolExecutor(4) as threads:
        for result in threads.map(read, examples):
            lost.append(result) if isinstance(result, dict) else kept.append(result)
    starts = range(0, max(1, len(kept)), plan.batch_size)
    return [_chunk(shard, start, len(starts), kept, lost, plan) for start in starts]


def _examples(plan: Plan, shard: Shard) -> list[dict[str, Any]]:
    """The rows of the prepared file for this shard: key, label and encoded image."""
    from pipeline.data import read_rows

    rows = range(shard.start, shard.start + shard.rows)
    with checked_copy(open_storage(plan.root), plan.prepare, shard.source) as path:
        return [row for table in read_rows(path, rows, ("key", "label", "image")) for row in table.to_pylist()]


def _chunk(
    shard: Shard,
    start: int,
    chunks: int,
    kept: list[tuple[str, int, np.ndarray]],
    lost: list[dict[str, str]],
    plan: Plan,
) -> dict[str, Any]:
    part = kept[start : start + plan.batch_size]
    size = plan.image_size
    pixels = np.stack([image for _, _, image in part]) if part else np.zeros((0, size, size, 3), np.uint8)
    facts = {
        "shard": shard.index,
        "chunk": start // plan.batch_size,
        "chunks": chunks,
        "keys": [key for key, _, _ in part],
        "labels": [label for _, label, _ in part],
        "quarantined": lost if start == 0 else [],
    }
    return {"facts": json.dumps(facts), "pixels": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).tobytes()}


class Encoder:
    """An actor of the pool: moments of a chunk, sums for the statistics, PSNR of the first images decoded again."""

    def __init__(self, plan: Plan) -> None:
        import torch

        from pipeline.inference import load_tokenizer, task_device

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.plan, self.device = plan, task_device()
        self.tokenizer, self.filter = load_tokenizer(open_storage(plan.root), plan.tokenizer, self.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import torch

        from models.metrics import from_uint8

        facts = json.loads(row["facts"])
        size = self.plan.image_size
        pixels = np.frombuffer(row["pixels"], np.uint8).reshape(-1, 3, size, size)
        images = torch.from_numpy(pixels.copy()).to(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.plan.bf16):
            moments = self.tokenizer.encode(from_uint8(images))
            mean, logvar = moments.mean_BDhw.half(), moments.logvar_BDhw.half()
            facts["sums"] = self._sums(mean.float(), logvar.float())
            if facts["chunk"] == 0 and len(images):
                facts["canary"] = self._canary(mean[:_CANARIES].float(), images[:_CANARIES])
        return {
            "facts": json.dumps(facts),
            "mean": mean.cpu().numpy().tobytes(),
            "logvar": logvar.cpu().numpy().tobytes(),
        }

    def _sums(self, mean: Any, logvar: Any) -> list[list[list[float]]]:
        """Per level and channel: sums of E[S_l z] and of E[(S_l z)^2] = (S_l mean)^2 + S_l^2 var.

        The variances are multiplied by the squared elements of S_l, since the noise is independent between positions.
        """
        matrices, sums = self.filter.matrices.double(), []
        flat_mean, flat_var = mean.double().flatten(2), logvar.double().exp().flatten(2)
        for level in range(LEVELS):
            filtered = flat_mean @ matrices[level].T
            square = filtered.square() + flat_var @ matrices[level].square().T
            sums.append([filtered.sum((0, 2)).tolist(), square.sum((0, 2)).tolist()])
        return sums

    def _canary(self, mean: Any, images: Any) -> float:
        from models.metrics import psnr_B, to_uint8

        return float(psnr_B(to_uint8(self.tokenizer.decode(mean)), images).mean())


class Writer:
    """A single actor that assembles shards from chunks, in order, and writes them with their records."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.pending: dict[int, dict[int, tuple[dict[str, Any], dict[str, Any]]]] = {}

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        facts = json.loads(row["facts"])
        chunks = self.pending.setdefault(facts["shard"], {})
        chunks[facts["chunk"]] = (facts, row)
        if len(chunks) < facts["chunks"]:
            return []
        self._write(facts["shard"], [chunks[index] for index in sorted(chunks)])
        del self.pending[facts["shard"]]
        return [{"index": facts["shard"]}]

    def _write(self, index: int, chunks: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        from pipeline.data import write_latent_shard

        storage = open_storage(self.plan.root)
        writer = ArtifactWriter(storage, "encode", self.plan.fingerprint)
        parts = [facts for facts, _ in chunks]
        mean = self._moments([row["mean"] for _, row in chunks])
        logvar = self._moments([row["logvar"] for _, row in chunks])
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
            raise DataError(f"encode: latents of shard {index} are not finite", "Use encode.precision fp32.")
        keys = [key for part in parts for key in part["keys"]]
        labels = np.array([label for part in parts for label in part["labels"]], np.int64)
        name = f"latents/{index:05d}.parquet"
        with TemporaryDirectory() as folder:
            path = Path(folder, "shard.parquet")
            write_latent_shard(path, keys, labels, mean, logvar)
            writer.add(path, name)
        record = {
            "path": name,
            "rows": len(keys),
            **writer.files[name].model_dump(),
            "sums": np.sum([part["sums"] for part in parts], axis=0).tolist(),
            "canary": parts[0].get("canary"),
            "quarantined": parts[0]["quarantined"],
        }
        storage.write(_record_path(self.plan.work, index), json.dumps(record).encode())

    def _moments(self, chunks: list[bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(chunks), np.float16).reshape(-1, *self.plan.latent_shape)


def _finish(context: StageContext, plan: Plan, records: list[dict[str, Any]]) -> Outcome:
    for record in records:
        context.writer.add_stored(record["path"], FileRecord(bytes=record["bytes"], sha256=record["sha256"]))
    rows = sum(record["rows"] for record in records)
    statistics = _statistics(np.sum([record["sums"] for record in records], axis=0), rows * plan.latent_shape[1] ** 2)
    canary = float(np.mean([record["canary"] for record in records if record["canary"] is not None]))
    least = context.config.encode.canary_psnr
    if canary < least:
        raise DataError(
            f"the PSNR of decoded latents is {canary:.1f} dB, less than encode.canary_psnr {least:.1f}",
            "Train the tokenizer longer, or lower encode.canary_psnr.",
        )
    quarantined = [entry for record in records for entry in record["quarantined"]]
    budget = context.config.data.quarantine_budget
    if len(quarantined) > budget * (rows + len(quarantined)):
        raise DataError(
            f"encode: {len(quarantined)} images can no longer be read, the first is {quarantined[0]['key']}: "
            f"{quarantined[0]['reason']}; that exceeds data.quarantine_budget {budget:g}",
            "Run `python -m pipeline artifact verify`, and repair `prepare`.",
        )
    metrics = {
        "latents/rows": float(rows),
        "latents/quarantined": float(len(quarantined)),
        "latents/canary_psnr": canary,
    }
    return context.writer.outcome(
        rows,
        metrics,
        latent_shape=list(plan.latent_shape),
        statistics=statistics,
        shards=[{"path": record["path"], "rows": record["rows"]} for record in records],
        quarantined=quarantined,
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
