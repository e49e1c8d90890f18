"""Tiny trainers for tests, and ranks that are processes on gloo, without Ray."""

import json
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.artifacts import Manifest, work_path
from pipeline.artifacts.lease import Holder
from pipeline.config import Config
from pipeline.storage import open_storage
from pipeline.training.checkpoint import Checkpoints, flatten_state
from pipeline.training.job import Job, Loop, loop_of
from pipeline.training.loop import train
from pipeline.training.worker import TRAINEES, no_notice
from pipeline.training.world import World
from tests.support.artifacts import config_at, fingerprint_of, trainer_inputs

KILLED = 9
NAN_AT = 15
SETS = [
    "tokenizer.width=16", "tokenizer.depth=1", "tokenizer.heads=2", "tokenizer.hidden=24", "tokenizer.batch_size=12",
    "tokenizer.steps=24", "tokenizer.checkpoint_every=4", "tokenizer.log_every=1",
    "tokenizer.discriminator_width=8", "tokenizer.discriminator_start=0.25", "tokenizer.adversarial_start=0.5",
    "sit.width=16", "sit.depth=2", "sit.heads=2", "sit.student_block=1", "sit.teacher_block=2",
    "sit.batch_size=12", "sit.steps=24", "sit.checkpoint_every=4", "sit.log_every=1", "cluster.loader_threads=1",
    "cluster.cpus_per_worker=1",  # tests train side by side, and threads that share a core wait for each other
]  # fmt: skip


def small_config(root: Path, *sets: str) -> Config:
    return config_at(root, "quickstart", *SETS, *sets)


def job_of(config: Config, stage: str, inputs: dict[str, Manifest], threads: int = 1) -> Job:
    """A job at the config's root, whose lease `put_lease` lays down."""
    fingerprint = fingerprint_of(config, stage)
    work = work_path(stage, fingerprint)
    return Job(config, stage, fingerprint, work, lease="nonce", outbox="test", inputs=inputs, threads=threads)


def put_lease(job: Job, nonce: str = "nonce") -> None:
    holder = Holder(owner="test", machine="m", pid=1, started=0, nonce=nonce, token=1, heartbeat=0)
    open_storage(job.config.root).write(f"{job.work}/lease.json", holder.model_dump_json().encode())


@dataclass(frozen=True)
class Ranks:
    """A job for so many ranks; `die_at` ends every one of them, unasked, in front of that step.

    `nan_on`: the rank whose own gradient in step NAN_AT is not finite.
    """

    job: Job
    world: int = 1
    die_at: int | None = None
    nan_on: int | None = None

    @property
    def loop(self) -> Loop:
        return loop_of(self.job, peak_flops=1e9)


def ranks_of(folder: Path, stage: str, world: int = 1, die_at: int | None = None, *sets: str) -> Ranks:
    """A job of 24 steps, with inputs made from random weights, at a root in this folder."""
    config = small_config(folder, *sets)
    return Ranks(job_of(config, stage, trainer_inputs(config, stage, folder / "scratch")), world, die_at)


class Dies(Exception):
    """Stands for the kill where the rank is this very process."""


def make_trainee(ranks: Ranks, world: World) -> Any:
    job = ranks.job
    trainee: Any = TRAINEES[job.stage](job.config, open_storage(job.config.root), job.inputs, world)
    if ranks.die_at is not None:
        step = trainee.step

        def dying(batch: Any, number: int) -> Any:
            if number == ranks.die_at:
                if ranks.world > 1:
                    os._exit(KILLED)
                raise Dies
            return step(batch, number)

        trainee.step = dying
    if ranks.nan_on == world.rank:
        trainee.step = _with_a_nan(trainee)
    return trainee


def _with_a_nan(trainee: Any) -> Any:
    step, network = trainee.step, trainee.states().get("tokenizer") or trainee.states()["model"]
    parameter = next(one for one in network.parameters() if one.requires_grad)

    def spoiled(batch: Any, number: int) -> Any:
        hook = parameter.register_hook(lambda grad: grad * math.nan) if number == NAN_AT else None
        losses = step(batch, number)
        if hook is not None:
            hook.remove()
        return losses

    return spoiled


def run_ranks(ranks: Ranks) -> None:
    """Train with all ranks; returns when they have ended, however that was."""
    put_lease(ranks.job)
    torch.set_num_threads(1)
    if ranks.world == 1:
        train(make_trainee(ranks, World.alone()), ranks.loop, World.alone(), no_notice)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("forkserver")  # which imports torch once, and not in each rank of each run
    context.set_forkserver_preload([__name__])
    processes = [context.Process(target=_rank, args=(ranks, rank, port)) for rank in range(ranks.world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == (0 if ranks.die_at is None else KILLED)


def _rank(ranks: Ranks, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks.world)
    world = World(rank, ranks.world, torch.device("cpu"), local_rank=rank)
    train(make_trainee(ranks, world), ranks.loop, world, no_notice)
    dist.destroy_process_group()


def final_state(ranks: Ranks) -> dict[str, Any]:
    loop = ranks.loop
    checkpoints = Checkpoints(loop.storage, f"{loop.work}/checkpoints", 2)
    assert checkpoints.newest() == loop.steps
    return checkpoints.load(loop.steps)


def history(ranks: Ranks) -> list[dict[str, float]]:
    loop = ranks.loop
    text = loop.storage.read(f"{loop.stage}/{loop.fingerprint[:12]}/history.jsonl")
    return [json.loads(line) for line in text.splitlines()]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes_of(a), _bytes_of(b))


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def same_state(a: Any, b: Any) -> bool:
    """Are two states equal to the last bit?"""
    tree_a, tensors_a = flatten_state(a)
    tree_b, tensors_b = flatten_state(b)
    return (
        bool(tree_a == tree_b)
        and tensors_a.keys() == tensors_b.keys()
        and all(same_bits(tensors_a[name], tensors_b[name]) for name in tensors_a)
    )
