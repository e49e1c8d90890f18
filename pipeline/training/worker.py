"""The work of one training worker, started by Ray or called directly (`train_as(World.alone(), job)`)."""

import time
from collections.abc import Callable

import torch

from pipeline.storage import open_storage
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
    train(trainee, loop_of(job, measured_peak(world.device) * world.size), world, notice)


def set_up_cuda(deterministic: bool) -> None:
    """Use TF32 for fp32 matrix products; deterministic kernels without autotuning, or the fastest ones."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)


def measured_peak(device: torch.device, seconds: float = 0.3) -> float:
    """FLOP/s of a large matrix product on this device, in the precision it trains in: the denominator of MFU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, a)
    _wait_for(device)
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        torch.mm(a, a)
        _wait_for(device)
        count += 1
    return count * 2.0 * size**3 / (time.monotonic() - begin)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
