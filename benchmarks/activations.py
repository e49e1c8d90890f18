"""How much memory do `cluster.accumulate` and `cluster.checkpoint_activations` save, per image of a device's batch?

Run: python -m benchmarks.activations
A step of the tokenizer with D at work, at two batch sizes: what is added by an image, and so weights, gradients and the
optimizer's state drop out. Measured twice over:
* at a size that two cores can do (CIFAR-10's preset, narrower and at 64 pixels): the most resident memory of a process
  for each setting and batch, as the kernel tells it, and the most bytes of tensors alive (`counting.LiveBytes`) in it;
* at the paper's size on fake tensors: bytes of tensors alive, with LPIPS, uncompiled, in bf16.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import RESULTS, save
from benchmarks.counting import LiveBytes, fake_batch, fake_trainee
from pipeline import cluster
from pipeline.config import load_config
from pipeline.storage import open_storage
from pipeline.training.tokenizer import TokenizerTrainee
from pipeline.training.world import World
from tests.support.artifacts import config_at, trainer_inputs

SETTINGS = {
    "as it is": [],
    "4 parts": ["cluster.accumulate=4"],
    "recomputed": ["cluster.checkpoint_activations=true"],
    "4 parts, recomputed": ["cluster.accumulate=4", "cluster.checkpoint_activations=true"],
}
_PAPERS, _SMALL = "imagenet-f16d32", "cifar10"
_SMALLER = [  # few weights and many tokens, so that activations are most of what a step needs
    "data.format=digits", "data.classes=10", "data.validation_share=0.2", "data.image_size=64",
    "tokenizer.width=128", "tokenizer.hidden=344",
]  # fmt: skip
_MIB = 2**20
_SMALLEST_MAPPED = "65536"  # bytes: what is freed goes back to the kernel, and is not kept for later


def in_this_process(sets: list[str], batch: int) -> dict[str, float]:
    """A real step's memory in MiB: the most resident in this process's life, and the most of tensors alive."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_at(Path(folder), _SMALL, *_SMALLER, f"tokenizer.batch_size={batch}", *sets)
        inputs = trainer_inputs(config, "train-tokenizer", Path(folder) / "scratch")
        trainee = TokenizerTrainee(config, open_storage(config.root), inputs, World.alone())
        loader = trainee.batches(0, 1)
        images = next(iter(loader))
        loader.close()
        with LiveBytes() as live:
            trainee.step(images, config.tokenizer.steps - 1)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux gives KiB
    return {"resident": resident, "alive": live.peak / _MIB}


def in_a_process(sets: list[str], batch: int) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.activations", "--alone", str(batch), *sets]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": _SMALLEST_MAPPED}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def faked(sets: list[str], batch: int) -> float:
    """The most MiB of tensors alive in a step at the paper's size, beside the weights, averages and moments."""
    config = load_config(_PAPERS, [f"tokenizer.batch_size={batch}", *sets])
    with fake_trainee(config) as trainee:
        images, last, parts = fake_batch(config, batch), config.tokenizer.steps - 1, trainee.parts
        trainee.parts = 1
        trainee.step(images, last)  # which makes the optimizers' state, sooner in one part
        trainee.parts = parts
        live = LiveBytes()
        with live:
            trainee.step(images, last)
    return live.peak / _MIB


def measure_small(batch: int, sets: list[str]) -> dict[str, dict[str, float]]:
    """MiB an image: resident and alive, by setting."""
    rows = {}
    for name, own in SETTINGS.items():
        half, whole = (in_a_process([*own, *sets], size) for size in (batch // 2, batch))
        rows[name] = {kind: (whole[kind] - half[kind]) / (batch - batch // 2) for kind in whole}
    return _as_shares(rows)


def measure_papers(batch: int, sets: list[str]) -> dict[str, dict[str, float]]:
    """MiB an image alive, and those of the whole batch, by setting."""
    rows = {}
    for name, own in SETTINGS.items():
        half, whole = (faked([*own, *sets], size) for size in (batch // 2, batch))
        rows[name] = {"alive": (whole - half) / (batch - batch // 2), "batch": whole}
    return _as_shares(rows)


def _as_shares(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """With each value's ratio to that of the step as it is."""
    plain = rows["as it is"]
    return {
        name: {**row, **{f"{kind}_ratio": value / plain[kind] for kind, value in row.items()}}
        for name, row in rows.items()
    }


def main(arguments: list[str] | None = None, folder: Path = RESULTS) -> Path | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="of the small one; a multiple of 8, as of the next")
    parser.add_argument("--papers-batch", type=int, default=32, help="images a device")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="of both presets")
    parser.add_argument("--alone", nargs="+", metavar="BATCH [SET ...]", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    cluster.set_environment()
    if given.alone:  # the process that is looked at
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(json.dumps(in_this_process(given.alone[1:], int(given.alone[0]))))
        return None
    small = measure_small(given.batch, given.sets)
    for name, row in small.items():
        resident = f"{row['resident']:7.1f} MiB an image resident ({row['resident_ratio']:.2f})"
        print(f"{_SMALL}, {name:20}{resident}, {row['alive']:7.1f} of tensors ({row['alive_ratio']:.2f})", flush=True)
    papers = measure_papers(given.papers_batch, given.sets)
    for name, row in papers.items():
        alive = f"{row['alive']:7.1f} MiB an image ({row['alive_ratio']:.2f})"
        print(f"{_PAPERS}, {name:20}{alive}, {row['batch'] / 1024:.1f} GiB for {given.papers_batch}", flush=True)
    batches = {_SMALL: given.batch, _PAPERS: given.papers_batch}
    result = {"batches": batches, "sets": given.sets, "mib_an_image": {_SMALL: small, _PAPERS: papers}}
    path = save("activations", result, folder=folder)
    print(path.name)
    return path


if __name__ == "__main__":
    main()
