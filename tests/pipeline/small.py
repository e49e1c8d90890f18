"""Tiny trainers for tests: artifacts made in place, and ranks that are processes on gloo, without Ray."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline import graph
from pipeline.artifacts import ArtifactWriter, Manifest, work_path
from pipeline.checkpoint import Checkpoints
from pipeline.config import Config
from pipeline.data.listing import list_source
from pipeline.data.prepare import prepare_unit
from pipeline.data.shards import write_latent_shard
from pipeline.data.sources import work_units
from pipeline.loading import load_config
from pipeline.sit_trainee import SitTrainee
from pipeline.storage import open_storage
from pipeline.tokenizer_trainee import TokenizerTrainee
from pipeline.training import Loop, World, train

KILLED = 9
SETS = [
    "tokenizer.width=16", "tokenizer.depth=1", "tokenizer.heads=2", "tokenizer.hidden=24", "tokenizer.batch_size=12",
    "tokenizer.steps=24", "tokenizer.checkpoint_every=4", "tokenizer.log_every=1",
    "tokenizer.discriminator_width=8", "tokenizer.discriminator_start=0.25", "tokenizer.adversarial_start=0.5",
    "sit.width=16", "sit.depth=2", "sit.heads=2", "sit.student_block=1", "sit.teacher_block=2",
    "sit.batch_size=12", "sit.steps=24", "sit.checkpoint_every=4", "sit.log_every=1", "cluster.loader_threads=1",
]  # fmt: skip


def small_config(root: Path, *sets: str) -> Config:
    config = load_config("quickstart", [*SETS, f"cluster.mirror={root / 'mirror'}", *sets], root.as_uri())
    revision = list_source(config.data).digest
    known = {"revision": revision, "classes": 10}
    return config.model_copy(update={"data": config.data.model_copy(update=known)})


def manifest(
    config: Config, stage: str, writer: ArtifactWriter, inputs: dict[str, Manifest], **details: Any
) -> Manifest:
    fingerprint = graph.fingerprints(config)[stage]
    assert fingerprint is not None
    return Manifest(
        stage=stage, fingerprint=fingerprint, inputs={name: m.fingerprint for name, m in inputs.items()},
        input_contents={name: m.content for name, m in inputs.items()},
        config=graph.counted_config(graph.find_stage(stage), config), files=dict(writer.files), rows=1, metrics={},
        details=details, seconds=0.0, git_sha=None, image_digest=None, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def artifact_writer(config: Config, stage: str) -> ArtifactWriter:
    fingerprint = graph.fingerprints(config)[stage]
    assert fingerprint is not None
    return ArtifactWriter(open_storage(config.root), stage, fingerprint)


def prepared(config: Config) -> Manifest:
    """The digits, prepared."""
    writer, storage = artifact_writer(config, "prepare"), open_storage(config.root)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for unit in work_units(list_source(config.data), config.data):
        for shard in prepare_unit(unit, config.data, config.seed, storage, writer.folder).shards:
            writer.files[shard.path] = type(writer.files.get(shard.path) or _record(0, ""))(
                bytes=shard.bytes, sha256=shard.sha256
            )
            splits[shard.split].append({"path": shard.path, "rows": shard.rows})
    return manifest(config, "prepare", writer, {}, splits=splits, classes=10, class_names=[])


def _record(size: int, sha256: str) -> Any:
    from pipeline.artifacts import FileRecord

    return FileRecord(bytes=size, sha256=sha256)


def trained_tokenizer(config: Config, prepare: Manifest) -> Manifest:
    """The manifest of a tokenizer; its weights are not needed to train SiT on given latents."""
    writer = artifact_writer(config, "train-tokenizer")
    return manifest(config, "train-tokenizer", writer, {"prepare": prepare}, filter={"mask": "gain", "keep": 0.5})


def encoded(config: Config, inputs: dict[str, Manifest], scratch: Path) -> Manifest:
    """Random latents with their statistics."""
    random = np.random.default_rng(0)
    shape = (config.tokenizer.latent_dim, config.grid, config.grid)
    mean = random.normal(size=(90, *shape)).astype(np.float16)
    logvar = random.normal(-4, 1, size=(90, *shape)).astype(np.float16)
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "latents.parquet"
    write_latent_shard(path, [f"k{i}" for i in range(90)], np.arange(90) % 10, mean, logvar)
    writer = artifact_writer(config, "encode")
    writer.add(path, "latents/00000.parquet")
    statistics = {str(level): {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]} for level in range(4)}
    shards = [{"path": "latents/00000.parquet", "rows": 90}]
    return manifest(config, "encode", writer, inputs, latent_shape=list(shape), statistics=statistics, shards=shards)


def trainer_inputs(config: Config, stage: str, scratch: Path) -> dict[str, Manifest]:
    prepare = prepared(config)
    if stage == "train-tokenizer":
        return {"prepare": prepare}
    tokenizer = trained_tokenizer(config, prepare)
    encode = encoded(config, {"prepare": prepare, "train-tokenizer": tokenizer}, scratch)
    return {"train-tokenizer": tokenizer, "encode": encode}


@dataclass(frozen=True)
class Job:
    """What a rank does; `die_at` ends every rank, unasked, in front of that step."""

    config: Config
    stage: str
    inputs: dict[str, Manifest]
    world: int
    die_at: int | None


class Dies(Exception):
    """Stands for the kill where the rank is this very process."""


def make_trainee(job: Job, world: World) -> Any:
    kind = TokenizerTrainee if job.stage == "train-tokenizer" else SitTrainee
    trainee: Any = kind(job.config, open_storage(job.config.root), job.inputs, world)
    if job.die_at is not None:
        step = trainee.step

        def dying(batch: Any, number: int) -> Any:
            if number == job.die_at:
                if job.world > 1:
                    os._exit(KILLED)
                raise Dies
            return step(batch, number)

        trainee.step = dying
    return trainee


def loop_of(job: Job) -> Loop:
    config, name = job.config, "tokenizer" if job.stage == "train-tokenizer" else "sit"
    own = getattr(config, name)
    fingerprint = graph.fingerprints(config)[job.stage]
    assert fingerprint is not None
    return Loop(
        name=name, steps=own.steps, batch_size=own.batch_size, checkpoint_every=own.checkpoint_every,
        log_every=own.log_every, keep=2, storage=open_storage(config.root), work=work_path(job.stage, fingerprint),
        lease="nonce", outbox="test", stage=job.stage, fingerprint=fingerprint, peak_flops=1e9,
    )  # fmt: skip


def put_lease(job: Job, nonce: str = "nonce") -> None:
    from pipeline.artifacts import Holder

    holder = Holder(owner="test", machine="m", pid=1, started=0, nonce=nonce, token=1, heartbeat=0)
    loop_of(job).storage.write(f"{loop_of(job).work}/lease.json", holder.model_dump_json().encode())


def run_ranks(job: Job) -> None:
    """Train with `job.world` ranks; returns when all have ended, however that was."""
    put_lease(job)
    torch.set_num_threads(1)
    if job.world == 1:
        train(
            make_trainee(job, World(0, 1, torch.device("cpu"))), loop_of(job), World(0, 1, torch.device("cpu")), _never
        )
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(job, rank, port)) for rank in range(job.world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == (0 if job.die_at is None else KILLED)


def _rank(job: Job, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=job.world)
    world = World(rank, job.world, torch.device("cpu"))
    train(make_trainee(job, world), loop_of(job), world, _never)
    dist.destroy_process_group()


def _never() -> None:
    """No notice comes."""


def final_state(job: Job) -> dict[str, Any]:
    loop = loop_of(job)
    checkpoints = Checkpoints(loop.storage, f"{loop.work}/checkpoints", 2)
    assert checkpoints.newest() == loop.steps
    return checkpoints.load(loop.steps)


def history(job: Job) -> list[dict[str, float]]:
    import json

    loop = loop_of(job)
    text = loop.storage.read(f"{job.stage}/{loop.fingerprint[:12]}/history.jsonl")
    return [json.loads(line) for line in text.splitlines()]
