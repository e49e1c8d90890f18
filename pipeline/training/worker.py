"""The work of one training worker, started by Ray or called directly (`train_as(World.alone(), job)`)."""

from collections.abc import Callable

import torch

from models.device import measured_peak, set_up_cuda
from pipeline.storage import open_storage
from pipeline.training.compiling import compile_errors
from pipeline.training.job import Job, loop_of
from pipeline.training.loop import train
from pipeline.training.progress import MirrorProgress
from pipeline.training.sit import SitTrainee
from pipeline.training.tokenizer import TokenizerTrainee
from pipeline.training.world import World

TRAINEES: dict[str, type[TokenizerTrainee] | type[SitTrainee]] = {
    "train-tokenizer": TokenizerTrainee,
    "train-sit": SitTrainee,
}


def no_notice() -> None:
    """No node of the group is about to be preempted."""


def train_as(world: World, job: Job, notice: Callable[[], float | None] = no_notice) -> None:
    """Train a job as this rank to the last step, resuming earlier attempts. `notice` and errors as in `loop.train`."""
    torch.set_num_threads(job.threads)
    if world.device.type == "cuda":
        set_up_cuda(job.config.cluster.deterministic)
    storage = open_storage(job.config.root)
    mirrored = MirrorProgress(storage, job.work) if world.rank == 0 else None
    trainee = TRAINEES[job.stage](job.config, storage, job.inputs, world, mirrored)
    with compile_errors(job.stage):
        train(trainee, loop_of(job, measured_peak(world.device) * world.size), world, notice)
